//! What a tenant's user may do on the broker, and what `setup` makes there.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lapin::{
    BasicProperties, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
        ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use pool::Tier;

use super::bed::{Bed, EPOCH, answer_to, finish, job, on_both, pull_one};
use crate::{
    broker::{
        BrokerError, Connected, Credential, Difference, Lane, Producer, ReplyBy, Settings, check, commands,
        connect, declare,
        topology::{long, table},
    },
    queue::amqp::AmqpTenant,
};
use worker::Outcome;

/// Runs what the operator is told to run, as far as this version knows it.
fn run_commands(bed: &Bed) {
    // Users are the whole broker's, and more than one test makes them.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let known = |since: Option<&str>| since.is_none() || bed.broker.version() == servers::Version::V4;
    for command in commands(&bed.options.topology(), bed.vhost(), "mayfly-serve", Duration::from_secs(3600)) {
        if !known(command.since) || command.args[0] == "add_vhost" {
            continue;
        }
        let mut args: Vec<&str> = command.args.iter().map(String::as_str).collect();
        if command.asks_password {
            if bed.broker.ctl(&["list_users"]).unwrap().lines().any(|line| line.starts_with(args[1])) {
                continue;
            }
            args.push("secret");
        }
        bed.broker.ctl(&args).unwrap_or_else(|error| panic!("{command}: {error}"));
    }
}

fn as_user(bed: &Bed, user: &str) -> Settings {
    bed.settings.clone().as_user(user, &Credential::new("secret"))
}

/// Tries something on a channel of its own and says whether the broker refused it for want of a right.
macro_rules! refused {
    ($connected:expr, |$channel:ident| $what:expr) => {{
        let $channel = $connected.channel().await.unwrap();
        let tried: lapin::Result<()> = async { $what }.await;
        match tried {
            Ok(()) => panic!("it was allowed: {}", stringify!($what)),
            Err(error) => {
                assert!(error.to_string().contains("ACCESS_REFUSED"), "{error}: {}", stringify!($what))
            }
        }
    }};
}

async fn publish(connected: &Connected, exchange: &str, key: &str) -> lapin::Result<()> {
    let channel = connected.channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let options = BasicPublishOptions::default();
    channel
        .basic_publish(exchange.into(), key.into(), options, b"{}", BasicProperties::default())
        .await?
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_user_can_write_to_its_exchange_and_read_its_replies_and_nothing_else() {
    on_both("rights", async |bed| {
        run_commands(&bed);
        let none = FieldTable::default;
        let mine = connect(&as_user(&bed, "acme"), "test").await.unwrap();
        publish(&mine, "mayfly.submit.acme", "docker").await.unwrap();
        for exchange in [
            "",
            "mayfly.submit.other",
            "mayfly.results",
            "mayfly.dead",
            "mayfly.returned",
            "mayfly.unroutable",
            "mayfly.bell",
            "amq.topic",
        ] {
            let key = "mayfly.jobs.other.docker.normal";
            let error = publish(&mine, exchange, key).await.expect_err(exchange).to_string();
            assert!(error.contains("ACCESS_REFUSED"), "{exchange}: {error}");
        }
        for queue in [
            "mayfly.jobs.acme.docker.normal",
            "mayfly.jobs.other.docker.normal",
            "mayfly.dead",
            "mayfly.returned",
        ] {
            refused!(mine, |channel| channel
                .basic_get(queue.into(), BasicGetOptions::default())
                .await
                .map(drop));
            refused!(mine, |channel| channel
                .basic_consume(queue.into(), "x".into(), BasicConsumeOptions::default(), none())
                .await
                .map(drop));
            refused!(mine, |channel| channel
                .queue_purge(queue.into(), QueuePurgeOptions::default())
                .await
                .map(drop));
            refused!(mine, |channel| channel
                .queue_delete(queue.into(), QueueDeleteOptions::default())
                .await
                .map(drop));
        }
        for queue in [
            "mine",
            "mayfly.reply.other.x",
            "mayfly.reply.acme.dev.x",
            "mayfly.reply.acme",
            "mayfly.jobs.acme.vm.high",
        ] {
            refused!(mine, |channel| channel
                .queue_declare(queue.into(), QueueDeclareOptions::durable(), none())
                .await
                .map(drop));
        }
        refused!(mine, |channel| channel
            .exchange_declare(
                "mayfly.submit.acme".into(),
                ExchangeKind::Direct,
                ExchangeDeclareOptions::default(),
                none()
            )
            .await);
        let own = "mayfly.reply.acme.x";
        let declare = |arguments| async {
            let channel = mine.channel().await.unwrap();
            channel.queue_declare(own.into(), QueueDeclareOptions::durable(), arguments).await.map(drop)
        };
        declare(none()).await.unwrap();
        for exchange in ["mayfly.results", "mayfly.submit.acme", "mayfly.submit.other", "mayfly.bell"] {
            refused!(mine, |channel| channel
                .queue_bind(own.into(), exchange.into(), "#".into(), QueueBindOptions::default(), none())
                .await);
        }
        // A queue that hands its messages on would write where its owner may not.
        let channel = mine.channel().await.unwrap();
        channel.queue_delete(own.into(), QueueDeleteOptions::default()).await.unwrap();
        for exchange in ["mayfly.submit.other", "mayfly.results", ""] {
            let on = table([("x-dead-letter-exchange", long(exchange))]);
            let error = declare(on).await.expect_err("handing on").to_string();
            assert!(error.contains("ACCESS_REFUSED"), "{exchange}: {error}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_gets_its_reply_and_mayfly_works_with_no_more_rights_than_it_is_given() {
    on_both("replies", async |bed| {
        run_commands(&bed);
        // The user that `setup` speaks of, not the one with all rights.
        let serve = as_user(&bed, "mayfly-serve");
        declare(&connect(&serve, "test").await.unwrap(), &bed.options.topology()).await.unwrap();
        let queue = bed.queue_with(&serve, bed.options.clone()).await;
        for (replies, id) in [(ReplyBy::Direct, "direct"), (ReplyBy::Queue, "queue")] {
            let producer = Producer::connect(&as_user(&bed, "acme"), "acme", replies).await.unwrap();
            let submitted = producer.submit(job(id)).await.unwrap();
            let pulled = pull_one(&queue).await;
            assert_eq!(pulled.key.id, id);
            finish(&queue, pulled, Outcome::Failed).await;
            let answered = answer_to(submitted).await;
            assert_eq!(answered.result.unwrap().id, id);
            assert_eq!(answered.message_id.unwrap(), format!("{id}:{EPOCH}"));
        }
        assert_eq!(queue.counts().replies, 2, "{:?}", queue.counts());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_or_other_is_said_by_name() {
    on_both("check", async |bed| {
        let connected = bed.connect().await;
        let topology = bed.options.topology();
        check(&connected, &topology).await.unwrap();
        let lane = Lane { tenant: "acme".into(), tier: Tier::Docker, high: false }.queue();
        let channel = connected.channel().await.unwrap();
        channel.queue_delete(lane.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        channel.queue_delete("mayfly.dead".into(), QueueDeleteOptions::default()).await.unwrap();
        let plain = QueueDeclareOptions::durable();
        channel.queue_declare("mayfly.dead".into(), plain, FieldTable::default()).await.unwrap();
        let Err(BrokerError::NotSetUp(differences)) = check(&connected, &topology).await else { panic!("fine?") };
        assert_eq!(differences.len(), 2, "{differences:?}");
        assert!(differences.contains(&Difference::Missing(format!("queue {lane}"))));
        assert!(
            differences.iter().any(|difference| matches!(difference, Difference::Other { what, .. } if what == "queue mayfly.dead")),
            "{differences:?}"
        );
        // Looking made nothing, and making throws nothing away.
        assert!(matches!(check(&connected, &topology).await, Err(BrokerError::NotSetUp(_))));
        assert!(matches!(declare(&connected, &topology).await, Err(BrokerError::NotSetUp(_))));
        let channel = connected.channel().await.unwrap();
        channel.queue_delete("mayfly.dead".into(), QueueDeleteOptions::default()).await.unwrap();
        declare(&connected, &topology).await.unwrap();
        check(&connected, &topology).await.unwrap();
        declare(&connected, &topology).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_floor_that_is_raised_holds_for_keys_that_led_elsewhere() {
    on_both("floor", async |mut bed| {
        let weak = Lane { tenant: "acme".into(), tier: Tier::Chroot, high: false }.queue();
        let strong = Lane { tenant: "acme".into(), tier: Tier::Docker, high: false }.queue();
        bed.publish("mayfly.submit.acme", "trusted", b"{}", BasicProperties::default()).await;
        bed.until_depth(&weak, 1).await;
        bed.options.tenants[0] = AmqpTenant { floor: Tier::Docker, ..bed.options.tenants[0].clone() };
        bed.options.tenants.push(AmqpTenant {
            name: "new".into(),
            floor: Tier::Vm,
            weight: 1,
            max_running: None,
        });
        declare(&bed.connect().await, &bed.options.topology()).await.unwrap();
        bed.publish("mayfly.submit.acme", "trusted", b"{}", BasicProperties::default()).await;
        bed.until_depth(&strong, 1).await;
        bed.until_depth(&weak, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_reached_over_tls_if_an_authority_vouches_for_it_and_not_otherwise() {
    on_both("tls", async |bed| {
        let (port, certificate) = bed.broker.tls();
        let (user, password) = bed.broker.admin();
        let url = |host: &str| format!("amqps://{user}@{host}:{port}/{}", bed.vhost());
        let settings = |host: &str| Settings::new(&url(host), &Credential::new(password)).unwrap();
        let trusting = settings("localhost").with_ca_file(&certificate).unwrap();
        let connected = connect(&trusting, "test").await.unwrap();
        check(&connected, &bed.options.topology()).await.unwrap();
        // The system's authorities know nothing of it.
        assert!(connect(&settings("localhost"), "test").await.is_err());
        let elsewhere = settings("127.0.0.1").with_ca_file(&certificate).unwrap();
        assert!(connect(&elsewhere, "test").await.is_err(), "the certificate is for another name");
    })
    .await;
}
