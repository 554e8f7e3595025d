//! The store on real Redis servers, each test on its own.

mod bed;
mod claims;
mod hosts;
mod output;
mod tls;

use self::bed::Bed;

macro_rules! contracts {
    ($($name:ident: $run:path;)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if let Some(mut bed) = Bed::start(stringify!($name)) {
                $run(&mut bed).await;
            }
        })+
    };
}

contracts! {
    redis_keeps_the_contract_of_a_store: crate::contract::store;
    redis_keeps_the_contract_of_a_shared_store: crate::contract::shared::store;
}
