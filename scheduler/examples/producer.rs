//! The producer of `docs/producers.md`, where it stands word for word: a test compares them and runs this one.
#![expect(
    clippy::wildcard_imports,
    clippy::print_stdout,
    reason = "an example reads as its reader would write it"
)]

use std::{collections::HashSet, env};

use lapin::{BasicProperties, Connection, ConnectionProperties, options::*, types::FieldTable};
use tokio_stream::StreamExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connection = Connection::connect(&env::var("AMQP_URL")?, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let reply_to = "amq.rabbitmq.reply-to";
    let mut results =
        channel.basic_consume(reply_to.into(), "".into(), no_ack, FieldTable::default()).await?;

    let job = r#"{"schema_version": 1, "image": "minimal", "command": ["echo", "from", "rust"]}"#;
    let exchange = format!("mayfly.submit.{}", env::var("TENANT")?);
    let properties = BasicProperties::default()
        .with_message_id("from-rust".into())
        .with_delivery_mode(2)
        .with_reply_to(reply_to.into());
    let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = channel.basic_publish(
        exchange.as_str().into(),
        "trusted".into(),
        mandatory,
        job.as_bytes(),
        properties,
    );
    sent.await?.await?;

    let mut seen = HashSet::new();
    while let Some(message) = results.next().await {
        let message = message?;
        if seen.insert(message.properties.message_id().clone()) {
            let result: serde_json::Value = serde_json::from_slice(&message.data)?;
            println!("{} {} {}", result["id"], result["outcome"], result["stdout"]["text"]);
            break;
        }
    }
    Ok(())
}
