use hyper::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream as Stream,
};

use futures_util::future::{BoxFuture, FutureExt};

use super::*;
use crate::{
    live::{JobCard, Snapshot, Window},
    metrics::{Known, View},
    store::redis::Follow,
};

/// A process that does nothing but to be looked at.
#[derive(Clone)]
struct Still(View);

impl Window for Still {
    fn view(&self) -> Option<View> {
        Some(self.0.clone())
    }

    fn moment(&self) -> Option<Arc<str>> {
        Some("{\"moment\":1}".into())
    }

    fn snapshot(&self) -> Option<Snapshot> {
        None
    }

    fn job(&self, _: JobKey) -> BoxFuture<'static, Result<Option<JobCard>, String>> {
        async { Ok(None) }.boxed()
    }

    fn waits_for(&self, _: &JobKey) -> BoxFuture<'static, String> {
        async { String::new() }.boxed()
    }

    fn follow(&self, _: &JobKey) -> Option<Follow> {
        None
    }
}

fn answerer(local: bool, token: Option<&str>, view: View) -> Answerer {
    let metrics = Arc::new(Metrics::new(Known { verb: "serve", ..Known::default() }));
    let token = token.map(|text| Token::new(text).unwrap());
    let address = if local { "127.0.0.1:9477" } else { "192.0.2.1:9477" }.parse().unwrap();
    Answerer {
        metrics,
        look: Arc::new(Still(view)),
        token,
        address,
        page: Document::page(),
        login: Document::login(),
        onlookers: Arc::new(Semaphore::new(2)),
    }
}

async fn ask(answerer: &Answerer, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let question = headers.iter().fold(Request::get(path), |it, (name, value)| it.header(*name, *value));
    let answer = answerer.answer(&question.body(()).unwrap()).await;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
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
    let look: Look = Arc::new(Still(View::default()));
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

#[tokio::test]
async fn a_browser_gives_the_token_once_and_is_let_in_from_then_on() {
    let guarded = answerer(false, Some("0123456789abc/+="), View::default());
    for path in ["/", "/job/acme/one"] {
        let (status, text) = ask(&guarded, path, &[]).await;
        assert_eq!(status, 401);
        assert!(text.contains("name=\"token\"") && text.contains("method=\"post\""), "it asks for it");
    }
    assert_eq!(
        ask(&guarded, "/events", &[]).await,
        (401, "the token of metrics.token_file is needed\n".into())
    );
    let enter = async |form: &str| {
        let question = Request::post("/login").body(Full::new(Bytes::from(form.to_owned()))).unwrap();
        guarded.admit(question).await
    };
    for wrong in ["token=0123456789abcdef", "token=", "0123456789abc/+=", "token=%", &"x".repeat(9000)] {
        let answer = enter(wrong).await;
        assert!(answer.status().is_client_error() && answer.headers().get(SET_COOKIE).is_none(), "{wrong}");
    }
    let answer = enter("token=0123456789abc%2F%2B%3D").await;
    assert_eq!(
        (answer.status(), &answer.headers()[LOCATION]),
        (StatusCode::SEE_OTHER, &"/".parse().unwrap())
    );
    let pass = answer.headers()[SET_COOKIE].to_str().unwrap();
    let pass = pass.split(';').next().unwrap();
    let (status, text) = ask(&guarded, "/", &[("cookie", pass)]).await;
    assert!(status == 200 && text.contains("<main"), "{text}");
}

#[tokio::test]
async fn how_many_look_on_is_bounded_and_no_other_page_is_among_them() {
    let local = answerer(true, None, View::default());
    let question = || Request::get("/events").body(()).unwrap();
    let first = local.answer(&question()).await;
    assert_eq!(first.headers()[CONTENT_TYPE], EVENTS);
    let mut body = first.into_body();
    let told = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(told, "event: moment\ndata: {\"moment\":1}\n\n");
    let second = local.answer(&question()).await;
    assert_eq!((second.status().as_u16(), ask(&local, "/events", &[]).await.0), (200, 503));
    drop(body);
    assert_eq!(local.answer(&question()).await.status(), 200, "a place is free again");

    let foreign = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "cors")];
    assert_eq!(ask(&local, "/metrics", &foreign).await.0, 403);
    let followed = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    assert_eq!(ask(&local, "/", &followed).await.0, 200, "a link that is followed");
    drop(second);
}

#[tokio::test]
async fn only_what_names_a_job_has_a_page() {
    let local = answerer(true, None, View::default());
    for (path, status) in [
        ("/job/acme/one", 200),
        ("/job/acme", 404),
        ("/job/acme/one/two", 404),
        ("/job/a%20b/one", 404),
        ("/events/a/<script>", 404),
    ] {
        // What is no address at all does not get here.
        let Ok(question) = Request::get(path).body(()) else { continue };
        assert_eq!(local.answer(&question).await.status(), status, "{path}");
    }
    let page = local.answer(&Request::get("/").body(()).unwrap()).await;
    let policy = page.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
}
