//! Whose job is next: deficit round robin over tenants, and inside a tenant high before normal. Pure.
//!
//! Each tenant in its turn may take as many jobs as its weight says. A tenant that has none waiting, or as many running
//! as it may, is passed over, so a slot stays free only if nobody has a job for it. Whoever has a job gets one within as many pulls as
//! the weights of all others come to, twice at most.

/// How many high jobs may go before a normal one that waits.
const HIGH_IN_A_ROW: u32 = 4;

/// Which lane, by its place in the list that the whole was made with.
pub(crate) type LaneNumber = usize;

/// What a tenant has a right to.
#[derive(Debug, Clone)]
pub(crate) struct Right {
    /// Its share against the others'; 1 or more.
    pub(crate) weight: u32,
    /// How many of its jobs may run at once.
    pub(crate) most: Option<u32>,
}

/// One way by which a tenant's jobs come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    /// Whose, by its place among the rights.
    pub(crate) share: usize,
    pub(crate) high: bool,
}

/// The state of the sharing.
#[derive(Debug)]
pub(crate) struct Fair {
    shares: Vec<Share>,
    lanes: Vec<LaneState>,
    turn: usize,
}

#[derive(Debug)]
struct Share {
    right: Right,
    high: Rotor,
    normal: Rotor,
    /// Jobs that it may still take in this turn.
    credit: u32,
    running: u32,
    high_in_a_row: u32,
}

/// Lanes of one class, which take turns.
#[derive(Debug, Default)]
struct Rotor {
    lanes: Vec<LaneNumber>,
    next: usize,
}

#[derive(Debug)]
struct LaneState {
    share: usize,
    /// How many wait, as far as is known.
    waiting: u64,
    /// How many jobs of it have begun, are not with the broker, and nobody has.
    orphans: u64,
    /// Whether it is left to others.
    resting: bool,
    /// Changes whenever somebody says that there is one.
    version: u64,
    /// The version for which a pull that found nothing was repeated.
    asked_again: u64,
}

impl Fair {
    pub(crate) fn new(rights: Vec<Right>, ways: &[Way]) -> Self {
        let share = |right| Share {
            right,
            high: Rotor::default(),
            normal: Rotor::default(),
            credit: 0,
            running: 0,
            high_in_a_row: 0,
        };
        let mut shares: Vec<Share> = rights.into_iter().map(share).collect();
        for (number, way) in ways.iter().enumerate() {
            let share = &mut shares[way.share];
            if way.high { &mut share.high } else { &mut share.normal }.lanes.push(number);
        }
        let lanes = ways
            .iter()
            .map(|way| LaneState {
                share: way.share,
                waiting: 0,
                orphans: 0,
                resting: false,
                version: 0,
                asked_again: 0,
            })
            .collect();
        Self { shares, lanes, turn: 0 }
    }

    /// The lane from which to pull now. Its tenant is taken to run one job more, until [`Self::missed`] or
    /// [`Self::done`] is told.
    pub(crate) fn next(&mut self) -> Option<LaneNumber> {
        // Once around, and the one with which it began again, with new credit.
        for _ in 0..=self.shares.len() {
            let share = self.shares.get_mut(self.turn)?;
            if share.credit > 0
                && share.right.most.is_none_or(|most| share.running < most)
                && let Some(lane) = share.pick(&self.lanes)
            {
                share.credit -= 1;
                share.running += 1;
                return Some(lane);
            }
            if !share.has_waiting(&self.lanes) {
                // Who wants nothing saves nothing up.
                share.credit = 0;
            }
            self.turn = (self.turn + 1) % self.shares.len();
            let share = &mut self.shares[self.turn];
            let weight = share.right.weight.max(1);
            share.credit = (share.credit + weight).min(2 * weight);
        }
        None
    }

    /// A pull found a job, and saw how many are left.
    pub(crate) fn found(&mut self, lane: LaneNumber, left: u64) {
        let lane = &mut self.lanes[lane];
        lane.waiting = left;
        lane.version += 1;
    }

    /// A pull found nothing, so it does not count. `version`: what [`Self::version`] said before the pull.
    pub(crate) fn missed(&mut self, lane: LaneNumber, version: u64) {
        self.counted(lane, version, 0);
        let share = &mut self.shares[self.lanes[lane].share];
        share.running = share.running.saturating_sub(1);
        share.credit = (share.credit + 1).min(2 * share.right.weight.max(1));
    }

    /// A job's end, or it went back.
    pub(crate) fn done(&mut self, lane: LaneNumber) {
        let share = &mut self.shares[self.lanes[lane].share];
        share.running = share.running.saturating_sub(1);
    }

    /// A job that was held is taken up again, whatever its tenant runs.
    pub(crate) fn again(&mut self, lane: LaneNumber) {
        self.shares[self.lanes[lane].share].running += 1;
    }

    /// Somebody says that there is a job. It may be one that is counted already.
    pub(crate) fn came(&mut self, lane: LaneNumber) {
        let lane = &mut self.lanes[lane];
        lane.waiting = lane.waiting.max(1);
        lane.version += 1;
    }

    /// A job goes back to where it came from. To be told before and after it does.
    pub(crate) fn goes_back(&mut self, lane: LaneNumber, done: bool) {
        let lane = &mut self.lanes[lane];
        lane.waiting += u64::from(!done);
        lane.version += 1;
    }

    /// Says so once more, for a pull that came too early. `false`: somebody else has said so since `version`, or already did.
    pub(crate) fn came_once_more(&mut self, lane: LaneNumber, version: u64) -> bool {
        let lane = &mut self.lanes[lane];
        if lane.version != version || lane.asked_again == version {
            return false;
        }
        lane.asked_again = version;
        lane.waiting = lane.waiting.max(1);
        true
    }

    /// To be asked before looking how many wait.
    pub(crate) fn version(&self, lane: LaneNumber) -> u64 {
        self.lanes[lane].version
    }

    /// Somebody looked how many wait. It is believed only if nobody said otherwise meanwhile.
    pub(crate) fn counted(&mut self, lane: LaneNumber, version: u64, waiting: u64) {
        let lane = &mut self.lanes[lane];
        if lane.version == version {
            lane.waiting = waiting;
        }
    }

    /// How many wait, as far as is known.
    pub(crate) fn waiting(&self) -> u64 {
        self.lanes.iter().map(LaneState::all).sum()
    }

    /// How many wait in one lane, as far as is known.
    pub(crate) fn waiting_in(&self, lane: LaneNumber) -> u64 {
        self.lanes[lane].all()
    }

    /// How many jobs of a lane's tenant run here, and how many may.
    pub(crate) fn standing_of(&self, lane: LaneNumber) -> (u32, Option<u32>) {
        let share = &self.shares[self.lanes[lane].share];
        (share.running, share.right.most)
    }

    /// Whether a lane is left to others, whatever waits there.
    pub(crate) fn rest(&mut self, lane: LaneNumber, resting: bool) {
        self.lanes[lane].resting = resting;
    }

    /// How many jobs of a lane nobody has.
    pub(crate) fn orphans(&self, lane: LaneNumber) -> u64 {
        self.lanes[lane].orphans
    }

    /// Somebody looked how many jobs of a lane nobody has.
    pub(crate) fn orphaned(&mut self, lane: LaneNumber, count: u64) {
        self.lanes[lane].orphans = count;
    }

    /// One of them is this host's now.
    pub(crate) fn adopted(&mut self, lane: LaneNumber) {
        let lane = &mut self.lanes[lane];
        lane.orphans = lane.orphans.saturating_sub(1);
    }
}

impl LaneState {
    /// How many jobs there are, as far as is known.
    fn all(&self) -> u64 {
        self.waiting + self.orphans
    }

    fn has_any_for_us(&self) -> bool {
        !self.resting && self.all() > 0
    }
}

impl Share {
    fn has_waiting(&self, lanes: &[LaneState]) -> bool {
        self.high.has_waiting(lanes) || self.normal.has_waiting(lanes)
    }

    fn pick(&mut self, lanes: &[LaneState]) -> Option<LaneNumber> {
        let normal_waits = self.normal.has_waiting(lanes);
        if (!normal_waits || self.high_in_a_row < HIGH_IN_A_ROW)
            && let Some(lane) = self.high.pick(lanes)
        {
            self.high_in_a_row = if normal_waits { self.high_in_a_row + 1 } else { 0 };
            return Some(lane);
        }
        self.high_in_a_row = 0;
        self.normal.pick(lanes)
    }
}

impl Rotor {
    fn has_waiting(&self, lanes: &[LaneState]) -> bool {
        self.lanes.iter().any(|lane| lanes[*lane].has_any_for_us())
    }

    fn pick(&mut self, lanes: &[LaneState]) -> Option<LaneNumber> {
        let (count, first) = (self.lanes.len(), self.next);
        let place = (0..count)
            .map(|step| (first + step) % count)
            .find(|place| lanes[self.lanes[*place]].has_any_for_us())?;
        self.next = place + 1;
        Some(self.lanes[place])
    }
}

#[cfg(test)]
mod tests;
