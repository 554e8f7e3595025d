//! How fast it is, on real brokers. Shown, not asserted; on a quiet machine:
//! `cargo test --release -p scheduler speed -- --ignored --nocapture --test-threads 1`.

#![expect(clippy::print_stdout, reason = "what it measures is for people")]

use std::{
    fs,
    time::{Duration, Instant},
};

use servers::{RabbitMq, Version};
use tokio::time::sleep;
use worker::Outcome;

use super::bed::{Bed, Host, finish, on_both, pull_one, submit, tenants};
use crate::{broker::ReplyBy, queue::Queue};

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{what}: p50 {:?}, p90 {:?}, p99 {:?}", at(0.5), at(0.9), at(0.99));
}

/// CPU time of a process so far, in seconds.
fn cpu_of(pid: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures"]
async fn the_speed_of_one_job_after_the_other_and_of_many() {
    on_both("speed", async |bed| {
        println!("{}", bed.broker.version().name());
        let queue = bed.queue().await;
        let producer = bed.producer("acme", ReplyBy::Direct).await;
        let (mut to_pull, mut to_result) = (Vec::new(), Vec::new());
        for number in 0..500 {
            let id = format!("one-{number}");
            let began = Instant::now();
            let (submitted, pulled) = tokio::join!(submit(&producer, &id), async {
                let pulled = pull_one(&queue).await;
                to_pull.push(began.elapsed());
                pulled
            });
            finish(&queue, pulled, Outcome::Failed).await;
            submitted.result().await.unwrap();
            to_result.push(began.elapsed());
            sleep(Duration::from_millis(5)).await;
        }
        show("publish to pull, idle host", to_pull);
        show("publish to result at the producer, empty job", to_result);
        println!("{:?}", queue.counts());
        queue.pause(true);
        for number in 0..2000 {
            submit(&producer, &format!("m-{number}")).await;
        }
        queue.pause(false);
        let began = Instant::now();
        for _ in 0..2000 {
            let pulled = pull_one(&queue).await;
            queue.ack(pulled.delivery).await.unwrap();
        }
        println!("pull and ack, a backlog: {:.0}/s", 2000.0 / began.elapsed().as_secs_f64());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures"]
async fn the_cost_of_an_idle_host_with_two_hundred_tenants() {
    for version in Version::ALL {
        let broker = RabbitMq::shared(version).unwrap();
        let names: Vec<String> = (0..200).map(|number| format!("tenant-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let began = Instant::now();
        let mut many = Bed::new("idle-many", Host::Shared(broker), tenants(&names)).await;
        println!("{}: set up in {:?}", version.name(), began.elapsed());
        many.options.tiers = pool::Tier::ALL.to_vec();
        let began = Instant::now();
        let queue = many.queue().await;
        println!("{} lanes, ready in {:?}", queue.waiting().len(), began.elapsed());
        let pid = broker.eval("list_to_integer(os:getpid()).").unwrap();
        let (broker, own) = (cpu_of(&pid), cpu_of("self"));
        let idle = async {
            let pulled = queue.pull();
            tokio::time::timeout(Duration::from_secs(20), pulled).await
        };
        assert!(idle.await.is_err());
        let share = |used: f64| used / 20.0 * 100.0;
        println!(
            "idle: host {:.1} %, broker {:.1} % of a core",
            share(cpu_of("self") - own),
            share(cpu_of(&pid) - broker)
        );
        let mut to_pull = Vec::new();
        let producer = many.producer("tenant-77", ReplyBy::Nothing).await;
        for number in 0..200 {
            let id = format!("one-{number}");
            let began = Instant::now();
            let (_, pulled) = tokio::join!(submit(&producer, &id), async {
                let pulled = pull_one(&queue).await;
                to_pull.push(began.elapsed());
                pulled
            });
            queue.ack(pulled.delivery).await.unwrap();
        }
        show("publish to pull with all of them", to_pull);
    }
}
