//! What goes on in a live process, for whoever looks on.
//!
//! - [`Window`]: how it is looked at.
//! - [`Snapshot`]: all of it at one moment; the page and `mayfly top` show the same.
//! - [`JobCard`]: one job.
//! - `reasons`: why what waits does; `afar`: the same, as the store that hosts share knows it.
//! - `text`: untrusted bytes, made fit to be shown.
//!
//! It reads and never changes anything.

mod afar;
mod job;
pub(crate) mod reasons;
mod snapshot;
pub(crate) mod text;
mod window;

pub(crate) use self::window::{Form, Pane};
pub use self::{
    afar::why_it_waits,
    job::{JobCard, StoryLine},
    snapshot::{Snapshot, TenantNow, TierNow},
    window::{Look, Sight, Window},
};
