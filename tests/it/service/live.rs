//! What a host shows of its work while it works: to whoever asks it, and to whoever looks at its page.

mod page;
mod top;
mod waiting;

use crate::harness::{Cluster, Host, eventually};

/// Cancels jobs that run or wait. One of which nothing is noted yet is known once it begins.
fn cancel_all(cluster: &Cluster, host: &Host, ids: &[String]) {
    for id in ids {
        eventually("it is cancelled", || {
            cluster.mayfly(&host.node, ["cancel", &cluster.key(id)]).finish().succeeded().then_some(())
        });
    }
}
