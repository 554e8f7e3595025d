//! Shapes: the classes of limits of which sandboxes are made before a job asks.
//!
//! A job gets the smallest class that holds what it asks, narrowed to exactly that when it is handed over. What
//! fits no class is made to measure, for that job alone. With no classes every set of limits is one of its own.

use crate::limits::Limits;

/// The classes, the smallest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shapes(Vec<Limits>);

/// What a job is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A sandbox of these limits, which may be made ahead.
    Class(Limits),
    /// One of exactly its own limits, made when it comes.
    Measured(Limits),
}

impl Shapes {
    pub(crate) fn new(mut classes: Vec<Limits>) -> Self {
        // Memory is what a host runs out of first.
        classes.sort_by_key(|class| (class.memory, class.disk, class.cpu_millis, class.pids));
        Self(classes)
    }

    /// The shape for a job with these limits. `exact_disk` where the disk of a sandbox cannot be narrowed.
    pub(crate) fn of(&self, asked: &Limits, exact_disk: bool) -> Shape {
        if self.0.is_empty() {
            return Shape::Class(*asked);
        }
        let disk = |limits: &Limits| (limits.disk, limits.inodes);
        let fits = |class: &&Limits| class.holds(asked) && (!exact_disk || disk(class) == disk(asked));
        match self.0.iter().find(fits) {
            Some(class) => Shape::Class(*class),
            None => Shape::Measured(*asked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn limits(memory: u64, cpu_millis: u32) -> Limits {
        Limits { memory: memory * MIB, disk: memory * MIB / 2, cpu_millis, ..Limits::default() }
    }

    #[test]
    fn a_job_gets_the_smallest_class_that_holds_all_it_asks() {
        let (small, wide, large) = (limits(256, 1000), limits(256, 2000), limits(1024, 4000));
        let shapes = Shapes::new(vec![large, wide, small]);
        assert_eq!(shapes.of(&limits(100, 500), false), Shape::Class(small));
        assert_eq!(shapes.of(&small, false), Shape::Class(small));
        assert_eq!(shapes.of(&limits(100, 1500), false), Shape::Class(wide));
        assert_eq!(shapes.of(&limits(300, 100), false), Shape::Class(large));
        let more_disk = Limits { disk: 200 * MIB, ..limits(256, 1000) };
        assert_eq!(shapes.of(&more_disk, false), Shape::Class(large));
    }

    #[test]
    fn what_fits_no_class_is_made_to_measure() {
        let shapes = Shapes::new(vec![limits(256, 1000)]);
        let asked = limits(512, 1000);
        assert_eq!(shapes.of(&asked, false), Shape::Measured(asked));
    }

    #[test]
    fn a_disk_that_cannot_be_narrowed_must_be_the_classs_own() {
        let (small, large) = (limits(256, 1000), limits(1024, 4000));
        let shapes = Shapes::new(vec![small, large]);
        let less_memory = Limits { memory: 100 * MIB, ..small };
        assert_eq!(shapes.of(&less_memory, true), Shape::Class(small));
        let less_disk = Limits { disk: 50 * MIB, ..small };
        assert_eq!(shapes.of(&less_disk, true), Shape::Measured(less_disk));
        assert_eq!(shapes.of(&less_disk, false), Shape::Class(small));
    }

    #[test]
    fn without_classes_every_set_of_limits_is_its_own() {
        let asked = limits(123, 456);
        assert_eq!(Shapes::default().of(&asked, false), Shape::Class(asked));
    }
}
