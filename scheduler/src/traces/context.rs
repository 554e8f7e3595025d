//! Whose trace a job belongs to: W3C Trace Context's `traceparent` and `tracestate`. They come from the producer, who may
//! write anything there: what is no such thing is as good as none, and what goes on is written anew from what was read.

/// A list of more is not passed on: the standard asks for no more.
const LONGEST_STATE: usize = 512;
const MOST_STATES: usize = 32;

/// A producer's span, in which a job was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent {
    trace: u128,
    span: u64,
    /// Whether its producer records it.
    recorded: bool,
    state: Option<String>,
}

impl TraceParent {
    /// Reads the two. `None`: it is no trace that could be gone on with.
    pub(crate) fn read(parent: &str, state: Option<&str>) -> Option<Self> {
        let mut fields = parent.split('-');
        let (version, trace) = (hex(fields.next()?, 2)?, hex(fields.next()?, 32)?);
        let (span, flags) = (hex(fields.next()?, 16)?, hex(fields.next()?, 2)?);
        // Later versions may have more behind it; the first has not.
        let whole = version != 0 || fields.next().is_none();
        let (span, recorded) = (u64::try_from(span).ok()?, flags & 1 == 1);
        let state = state.filter(|state| is_state(state)).map(str::to_owned);
        (whole && version != 0xff && trace != 0 && span != 0).then_some(Self { trace, span, recorded, state })
    }

    /// The same, for whoever goes on with it.
    pub(crate) fn header(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.recorded))
    }

    /// What the producer's tracing system wants to go with it.
    pub(crate) fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let good = text.len() == digits && text.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
    good.then(|| u128::from_str_radix(text, 16).ok())?
}

/// Whether it is a list of `key=value`, as the standard has them.
fn is_state(text: &str) -> bool {
    let is_key = |key: &str| {
        (1..=256).contains(&key.len())
            && key.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || b"_-*/@".contains(&it))
    };
    let is_value = |value: &str| {
        (1..=256).contains(&value.len()) && value.bytes().all(|it| matches!(it, b' '..=b'~') && it != b'=')
    };
    let is_member = |member: &str| {
        member
            .trim_matches([' ', '\t'])
            .split_once('=')
            .is_some_and(|(key, value)| is_key(key) && is_value(value))
    };
    text.len() <= LONGEST_STATE && text.split(',').count() <= MOST_STATES && text.split(',').all(is_member)
}

/// The trace of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace: u128,
    /// The producer's span; `None`: the trace begins here.
    pub(super) parent: Option<u64>,
    /// The job's own.
    pub(super) span: u64,
    pub(super) state: Option<String>,
}

impl Context {
    /// The producer's trace, or one that begins here. `None`: it is not recorded, because its producer does not, or
    /// because only a share of those that begin here is.
    pub(super) fn of(parent: Option<TraceParent>, share: f64) -> Option<Self> {
        let span = id()?;
        match parent {
            Some(TraceParent { recorded: false, .. }) => None,
            Some(TraceParent { trace, span: parent, state, .. }) => {
                Some(Self { trace, parent: Some(parent), span, state })
            }
            None => {
                let (high, low) = (id()?, id()?);
                let trace = u128::from(high) << 64 | u128::from(low);
                let drawn = low as f64 / u64::MAX as f64;
                (share >= 1.0 || drawn < share).then_some(Self { trace, parent: None, span, state: None })
            }
        }
    }
}

/// A new id. Without random numbers there is none: a span is lost, and nothing else.
pub(super) fn id() -> Option<u64> {
    getrandom::u64().ok().filter(|id| *id != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn read(text: &str) -> Option<TraceParent> {
        TraceParent::read(text, None)
    }

    #[test]
    fn the_producers_trace_goes_on_and_is_written_anew() {
        let parent = read(&format!("00-{TRACE}-{SPAN}-01")).unwrap();
        assert_eq!(parent.header(), format!("00-{TRACE}-{SPAN}-01"));
        let own = Context::of(Some(parent), 0.0).unwrap();
        assert_eq!(
            (format!("{:032x}", own.trace), own.parent),
            (TRACE.to_owned(), Some(0x00f0_67aa_0ba9_02b7))
        );
        assert!(own.span != 0 && Some(own.span) != own.parent);
        // Of a later version, what this one knows.
        let later = read(&format!("01-{TRACE}-{SPAN}-ff-more\r\nx: y")).unwrap();
        assert_eq!(later.header(), format!("00-{TRACE}-{SPAN}-01"));
        let unrecorded = read(&format!("00-{TRACE}-{SPAN}-00")).unwrap();
        assert_eq!(unrecorded.header(), format!("00-{TRACE}-{SPAN}-00"));
        assert_eq!(Context::of(Some(unrecorded), 1.0), None, "its producer does not record it");
    }

    #[test]
    fn what_is_no_trace_is_none() {
        for bad in [
            "",
            "00-1-2-3",
            &format!("00-{TRACE}-{SPAN}-01-more"),
            &format!("00-{TRACE}-{SPAN}-01\n"),
            &format!("ff-{TRACE}-{SPAN}-01"),
            &format!("00-{}-{SPAN}-01", "0".repeat(32)),
            &format!("00-{TRACE}-{}-01", "0".repeat(16)),
            &format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            &format!("00-+{}-{SPAN}-01", &TRACE[1..]),
            &format!("00-{TRACE}-{SPAN}"),
            &"0".repeat(100_000),
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_state_goes_on_if_it_is_one() {
        let state = |text: &str| {
            TraceParent::read(&format!("00-{TRACE}-{SPAN}-01"), Some(text))
                .unwrap()
                .state()
                .map(str::to_owned)
        };
        for good in ["rojo=00f067aa0ba902b7", "rojo=1, congo=t61rcWkgMzE,a@b=c d"] {
            assert_eq!(state(good).as_deref(), Some(good));
        }
        let (many, long) = (vec!["a=b"; 33].join(","), format!("a={}", "b".repeat(512)));
        for bad in ["", "a", "=b", "a=", "a=b\r\nx: y", "A=b", "a=\u{1b}[31m", "a=é", "a=b,", &many, &long] {
            assert_eq!(state(bad), None, "{bad}");
        }
    }

    #[test]
    fn of_those_that_begin_here_a_share_is_recorded() {
        let recorded = |share| (0..1000).filter(|_| Context::of(None, share).is_some()).count();
        assert_eq!((recorded(0.0), recorded(1.0)), (0, 1000));
        let half = recorded(0.5);
        assert!((300..700).contains(&half), "{half}");
        assert_ne!(Context::of(None, 1.0).unwrap().trace, Context::of(None, 1.0).unwrap().trace);
    }
}
