//! Whether any sandbox serves a second job: seen from the results, by whoever did not hand it out.

use std::collections::{HashSet, VecDeque};

/// How many lives are remembered. A sandbox that came back would come back soon.
const REMEMBERED: usize = 20_000;

/// The lives of sandboxes that jobs have told of lately.
#[derive(Debug, Default)]
pub(super) struct Generations {
    known: HashSet<u128>,
    order: VecDeque<u128>,
}

impl Generations {
    /// Remembers a life. Whether no job had told of it before.
    pub(super) fn is_new(&mut self, generation: &str) -> bool {
        // What is no id was never given by this host's pool.
        let Ok(generation) = u128::from_str_radix(generation, 16) else { return false };
        if !self.known.insert(generation) {
            return false;
        }
        self.order.push_back(generation);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_new_once_and_what_is_remembered_is_bounded() {
        let mut generations = Generations::default();
        assert!(generations.is_new("0f") && !generations.is_new("0f"));
        assert!(!generations.is_new("not an id"), "what cannot be told apart is not taken for new");
        for n in 0..2 * REMEMBERED {
            assert!(generations.is_new(&format!("{:032x}", n + 1000)));
        }
        assert_eq!((generations.known.len(), generations.order.len()), (REMEMBERED, REMEMBERED));
    }
}
