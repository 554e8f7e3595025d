//! The queue against real brokers of both versions. Each test has a virtual host of its own.

mod bed;
mod contract;
mod dead;
mod fairness;
mod faults;
mod hostile;
mod results;
mod rights;
mod speed;
