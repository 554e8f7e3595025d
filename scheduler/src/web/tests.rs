use hyper::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream as Stream,
};

use super::*;
use crate::metrics::Known;

fn answerer(local: bool, token: Option<&str>, view: View) -> Answerer {
    let metrics = Arc::new(Metrics::new(Known { verb: "serve", ..Known::default() }));
    let token = token.map(|text| Token::new(text).unwrap());
    Answerer { metrics, look: Arc::new(move || Some(view.clone())), token, local }
}

async fn ask(answerer: &Answerer, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let question = headers.iter().fold(Request::get(path), |it, (name, value)| it.header(*name, *value));
    let answer = answerer.answer(&question.body(()).unwrap()).await;
    let status = answer.status().as_u16();
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn stopping() -> View {
    View { stopping: true, ..View::default() }
}

#[tokio::test]
async fn numbers_and_health_are_told_and_nothing_else() {
    let local = answerer(true, None, View::default());
    let (status, text) = ask(&local, "/metrics", &[]).await;
    assert_eq!(status, 200);
    assert!(text.contains("mayfly_ready 1\n"), "{text}");
    assert_eq!(ask(&local, "/healthz", &[]).await, (200, "ok\n".to_owned()));
    assert_eq!(ask(&local, "/readyz", &[]).await, (200, "ready\n".to_owned()));
    assert_eq!(ask(&local, "/etc/passwd", &[]).await.0, 404);
    let post = Request::post("/metrics").body(()).unwrap();
    assert_eq!(local.answer(&post).await.status(), 405);

    let (status, text) = ask(&answerer(true, None, stopping()), "/readyz", &[]).await;
    assert_eq!((status, text.lines().next()), (503, Some("not ready")));
    assert!(text.contains("takes no more jobs"), "{text}");
}

#[tokio::test]
async fn who_shows_no_token_hears_whether_it_is_ready_and_not_why() {
    let guarded = answerer(false, Some("0123456789abcdef"), stopping());
    for wrong in [
        &[][..],
        &[("authorization", "Bearer 0123456789abcdeg")],
        &[("authorization", "Basic 0123456789abcdef")],
    ] {
        assert_eq!(ask(&guarded, "/metrics", wrong).await.0, 401);
        assert_eq!(ask(&guarded, "/anything", wrong).await.0, 401);
        assert_eq!(ask(&guarded, "/readyz", wrong).await, (503, "not ready\n".to_owned()));
    }
    let right = [("authorization", "Bearer 0123456789abcdef")];
    assert_eq!(ask(&guarded, "/metrics", &right).await.0, 200);
    assert!(ask(&guarded, "/readyz", &right).await.1.contains("takes no more jobs"));
    assert_eq!(ask(&guarded, "/healthz", &[]).await.0, 200);
}

#[tokio::test]
async fn a_page_under_a_name_that_leads_here_reads_nothing() {
    let local = answerer(true, None, View::default());
    for (host, status) in [
        ("127.0.0.1:9477", 200),
        ("localhost:9477", 200),
        ("LOCALHOST", 200),
        ("[::1]:9477", 200),
        ("evil.example:9477", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:1", 421),
    ] {
        assert_eq!(ask(&local, "/metrics", &[("host", host)]).await.0, status, "{host}");
    }
    // Where a token is needed, no such page has it.
    let guarded = answerer(true, Some("0123456789abcdef"), View::default());
    let headers = [("host", "metrics.example"), ("authorization", "Bearer 0123456789abcdef")];
    assert_eq!(ask(&guarded, "/metrics", &headers).await.0, 200);
}

#[tokio::test]
async fn a_place_that_is_taken_is_named_and_one_that_is_closed_is_free_again() {
    let place = Place::take("127.0.0.1:0".parse().unwrap(), None).await.unwrap();
    let address = place.address();
    let taken = Place::take(address, None).await.unwrap_err().to_string();
    assert!(taken.contains(&address.to_string()), "{taken}");

    let metrics = Arc::new(Metrics::new(Known { verb: "serve", ..Known::default() }));
    let look: Look = Arc::new(|| Some(View::default()));
    let web = place.answer(metrics, Arc::clone(&look));
    let mut idle = Stream::connect(address).await.unwrap();
    let mut asks = Stream::connect(address).await.unwrap();
    asks.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    asks.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok\n"), "{answer}");

    web.close().await;
    assert_eq!(
        Arc::strong_count(&look),
        1,
        "nobody looks any more, not even over a connection that stays open"
    );
    assert_eq!(idle.read(&mut [0; 8]).await.unwrap_or(0), 0);
    drop(Place::take(address, None).await.unwrap());
}
