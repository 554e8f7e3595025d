//! A host that can make no sandboxes for a while: its jobs are another's, it says so, and goes on when it can again.

use std::{fs, os::unix::fs::symlink};

use scheduler::broker::ReplyBy;
use serde_json::json;
use servers::Version;
use worker::Outcome;

use super::on_every_broker;
use crate::harness::{Cluster, Host, Node, eventually, script};

on_every_broker! {
    a_host_that_can_make_no_sandbox_leaves_its_jobs_to_others_and_goes_on_when_it_can
}

/// Its images cannot be read any more, which no job is to blame for.
pub(super) fn break_images(host: &Host) -> std::path::PathBuf {
    let link = host.node.data_dir().join("images");
    let images = fs::read_link(&link).unwrap();
    fs::remove_file(&link).unwrap();
    symlink("/dev/null", &link).unwrap();
    images
}

pub(super) fn mend_images(host: &Host, images: &std::path::Path) {
    let link = host.node.data_dir().join("images");
    fs::remove_file(&link).unwrap();
    symlink(images, &link).unwrap();
}

fn a_host_that_can_make_no_sandbox_leaves_its_jobs_to_others_and_goes_on_when_it_can(
    test: &str,
    version: Version,
) {
    let Some(cluster) = Cluster::new(test, version, "") else { return };
    let (mut sick, mut well) = (cluster.host(), Cluster::idle_host());
    let (elsewhere, producer) = (Node::new(), cluster.producer(ReplyBy::Queue));
    let job = script("true", &json!({}));
    assert_eq!(cluster.answer(cluster.send(&producer, "first", job.as_str())).outcome, Outcome::Succeeded);

    let images = break_images(&sick);
    let named = script("true", &json!({ "id": "named", "trust": "trusted" }));
    cluster.mayfly(&elsewhere, ["submit"]).stdin(named).finish().code(0);
    let sent: Vec<_> = (0..20).map(|n| cluster.send(&producer, &format!("job-{n}"), job.as_str())).collect();
    let resting = || {
        let said = sick.node.mayfly(["status", "--json"]).finish().code(0).json();
        let mut all = said.as_array().unwrap().clone().into_iter();
        let ours = all.find(|who| who["pid"] == sick.running().pid()).expect("it lives");
        (ours["resting"].as_array().unwrap().clone(), ours["ended"].as_u64().unwrap())
    };
    eventually("its tier rests", || (resting().0.first()?["tier"] == "chroot").then_some(()));
    sick.node.mayfly(["pool", "status"]).finish().code(0).prints(&["resting  chroot", "data/images"]);
    eventually("the other hosts hear of it", || {
        let said = cluster.mayfly(&elsewhere, ["status", &cluster.key("named")]).finish().code(0);
        said.text().contains("no host offers tier chroot now").then_some(())
    });
    assert_eq!(resting().1, 1, "no job was spent");

    cluster.serve(&mut well, |mayfly| mayfly);
    for sent in sent {
        assert_eq!(cluster.answer(sent).outcome, Outcome::Succeeded);
    }
    assert_eq!(cluster.result(&elsewhere, "named")["outcome"], "succeeded");
    assert_eq!(resting().1, 1, "the other did them all");
    well.stop().code(0);
    well.check();

    mend_images(&sick, &images);
    assert_eq!(cluster.answer(cluster.send(&producer, "last", job.as_str())).outcome, Outcome::Succeeded);
    assert_eq!(resting().0.len(), 0);
    sick.stop().code(0).says(&["tier chroot rests", "tier chroot is offered again"]);
    sick.check();
}
