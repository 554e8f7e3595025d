//! The Lua scripts: each is one mutation, done whole or not at all, and the same when it is done twice.

use std::sync::LazyLock;

use redis::Script;

macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $($file:literal)+;)+) => {
        $($(#[$doc])* pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!($(include_str!(concat!("lua/", $file, ".lua"))),+)));)+
    };
}

scripts! {
    /// A job is about to be started.
    BEGIN = "leases" "begin";
    /// It gets its result.
    FINISH = "finish";
    /// It was not started after all.
    RELEASE = "release";
    /// It is not wanted any more.
    CANCEL = "cancel";
    /// It has been sent.
    SUBMITTED = "submitted";
    /// A host lives.
    HEARTBEAT = "leases" "heartbeat";
    /// An attempt that Redis may have forgotten.
    RESTORE = "restore";
    /// An attempt that its owner knows nothing of.
    DISOWN = "disown";
    /// All hosts.
    HOSTS = "leases" "hosts";
    /// How many jobs run.
    RUNNING = "leases" "running";
    /// A host is dead.
    BURY = "bury";
    /// A long job is taken over from the broker.
    CLAIM = "leases" "claim";
    /// Claims of dead hosts change hands.
    TAKE = "leases" "take";
    /// Claims that nobody has.
    ORPHANS = "leases" "orphans";
    /// A claim is done with.
    FORGET = "forget";
    /// A claim is given up.
    HAND_BACK = "hand_back";
}
