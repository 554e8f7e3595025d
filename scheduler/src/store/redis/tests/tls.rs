//! Redis over TLS.

use std::{path::Path, process::Command, time::Duration};

use super::bed::Bed;
use crate::store::redis::{HostFacts, RedisSettings, RedisStore, RedisStoreError};

/// Two authorities, and a server's key and certificate that the first of them signed. `None`: there is no openssl.
fn certify(folder: &Path) -> Option<()> {
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").ok()?;
    let openssl = |line: &str| {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(folder).output();
        output.is_ok_and(|output| output.status.success()).then_some(())
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for authority in ["one", "other"] {
        openssl(&format!(
            "req -x509 {key} -subj /CN={authority} -days 2 -keyout {authority}.key -out {authority}.pem"
        ))?;
    }
    openssl(&format!("req -new {key} -subj /CN=redis -keyout redis.key -out redis.csr"))?;
    openssl(
        "x509 -req -in redis.csr -CA one.pem -CAkey one.key -CAcreateserial -days 2 -extfile names -out redis.pem",
    )
}

#[tokio::test]
async fn redis_is_spoken_to_over_tls_if_who_signed_it_is_trusted() {
    let test = "redis_is_spoken_to_over_tls_if_who_signed_it_is_trusted";
    let folder = tempfile::tempdir().unwrap();
    if certify(folder.path()).is_none() {
        return servers::skipped(test, "there is no openssl to make certificates with");
    }
    let file = |name: &str| folder.path().join(name);
    let port = servers::free_port().unwrap().to_string();
    let (certificate, key) = (file("redis.pem"), file("redis.key"));
    let tls = [
        ("tls-port", port.as_str()),
        ("tls-cert-file", certificate.to_str().unwrap()),
        ("tls-key-file", key.to_str().unwrap()),
        ("tls-auth-clients", "no"),
    ];
    let Some(mut bed) = Bed::start_with(test, &tls) else { return };
    bed.begin_anew(Duration::from_secs(600));
    let open = |certificates: &str| {
        let mut settings: RedisSettings = bed.settings();
        settings.address.url = format!("rediss://127.0.0.1:{port}");
        settings.address.certificates = Some(file(certificates));
        RedisStore::open(settings, "instance", HostFacts::default()).unwrap()
    };
    open("one.pem").check().await.unwrap();
    let refused = open("other.pem").check().await.unwrap_err();
    assert!(matches!(refused, RedisStoreError::Away { .. }), "{refused:?}");
}
