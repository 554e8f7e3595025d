//! What a process shows over HTTP, as the configuration and the command line have it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use pool::Tier;
use scheduler::{
    config::Config,
    metrics::{Known, Metrics},
    traces::{Sending, Traces},
    web::{Place, Token, WebError},
};
use worker::{ErrorReport, causes};

use crate::node;

/// Where a host that serves shows it; `None`: nowhere.
pub(crate) async fn place(config: &Config) -> Result<Option<Place>, ErrorReport> {
    let Some(address) = config.metrics.listen else { return Ok(None) };
    let token = config.metrics.token().map_err(|error| {
        let hint = "make one by `head -c 24 /dev/urandom | base64 >FILE`, readable by mayfly alone";
        ErrorReport::new("the token for metrics cannot be used", causes(&error), hint)
    })?;
    let hint =
        "name another port as metrics.listen in the configuration, or \"off\"; `ss -ltnp` shows who has it";
    take(address, token, hint).await.map(Some)
}

/// Where a batch shows it.
pub(crate) async fn place_of_batch(address: SocketAddr) -> Result<Place, ErrorReport> {
    if !address.ip().is_loopback() {
        let why = format!("{address} can be reached from other hosts, and a batch asks nobody for a token");
        return Err(ErrorReport::new(
            "cannot show metrics there",
            why,
            "use an address such as 127.0.0.1:9477",
        ));
    }
    take(address, None, "name another port; `ss -ltnp` shows who has it").await
}

async fn take(address: SocketAddr, token: Option<Token>, hint: &str) -> Result<Place, ErrorReport> {
    let cannot =
        |error: WebError| ErrorReport::new("metrics and health cannot be shown", causes(&error), hint);
    Place::take(address, token).await.map_err(cannot)
}

/// What a host that serves counts.
pub(crate) fn of_service(config: &Config, tiers: &[Tier], max_sandboxes: usize) -> Arc<Metrics> {
    let kept = config.pool.keep.iter();
    Arc::new(Metrics::new(Known {
        verb: "serve",
        version: env!("CARGO_PKG_VERSION"),
        tenants: config.tenants.keys().cloned().collect(),
        tiers: tiers.to_vec(),
        kept: kept.map(|keep| (keep.tier, name_of(&keep.image))).collect(),
        max_sandboxes,
        acceptable_wait: config.metrics.acceptable_wait,
        selftest_every: config.selftest.every,
    }))
}

/// What a batch counts. All its jobs wait from the beginning, so none waits too long.
pub(crate) fn of_batch(max_sandboxes: usize) -> Arc<Metrics> {
    Arc::new(Metrics::new(Known {
        verb: "batch",
        version: env!("CARGO_PKG_VERSION"),
        tenants: vec!["local".to_owned()],
        tiers: Tier::ALL.to_vec(),
        kept: Vec::new(),
        max_sandboxes,
        acceptable_wait: Duration::MAX,
        selftest_every: None,
    }))
}

/// Where a host that serves sends the traces of its jobs, and what sends them; `None`: nowhere.
pub(crate) fn traces(
    config: &Config,
    metrics: Option<Arc<Metrics>>,
) -> Result<Option<(Arc<Traces>, Sending)>, ErrorReport> {
    let cannot = |why| {
        let hint = "see [traces] in the configuration; without traces.endpoint there are none";
        ErrorReport::new("traces cannot be sent", why, hint)
    };
    let settings = config.traces.settings(node::host_name(), env!("CARGO_PKG_VERSION").to_owned());
    let settings = settings.map_err(|error| cannot(causes(&error)))?;
    settings.map(|settings| Traces::open(settings, metrics)).transpose().map_err(cannot)
}

/// The image's name without its digest.
fn name_of(image: &str) -> String {
    image.split('@').next().unwrap_or_default().to_owned()
}
