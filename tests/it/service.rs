//! The service form from outside: real brokers, a real store, hosts that serve, and what producers see.

mod batch;
mod claims;
mod faults;
mod inputs;
mod jobs;
mod producers;
mod settings;
mod strays;
mod unable;

/// The same test on each version of the broker.
macro_rules! on_every_broker {
    ($($name:ident)+) => {
        $(mod $name {
            #[test]
            fn on_debian_12() {
                super::$name(concat!(module_path!(), "::on_debian_12"), servers::Version::Debian12);
            }
            #[test]
            fn on_version_4() {
                super::$name(concat!(module_path!(), "::on_version_4"), servers::Version::V4);
            }
        })+
    };
}
use on_every_broker;
