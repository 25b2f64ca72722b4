//! The demonstration: curl, which knows nothing of it, under the enforcer, in a network that has no way out. Run by
//! `cargo xtask demo`.
//!
//! It asserts what it shows: the exit status is not 0 if anything is not as it is told.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a demonstration that cannot go on fails by panic, for the place and the stack"
)]

mod kernel;
mod requests;
mod stage;
mod story;

use std::process::ExitCode;

use crate::{stage::Stage, story::Story};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut story = Story::begin();
    let stage = Stage::set().await;
    stage.introduce(&story);
    requests::without_the_enforcer(&stage, &mut story).await;
    requests::an_allowed_name(&stage, &mut story).await;
    requests::a_denied_name(&stage, &mut story).await;
    requests::a_denied_name_in_clear(&stage, &mut story).await;
    requests::a_forged_name(&stage, &mut story).await;
    kernel::while_it_runs(&stage, &mut story).await;
    story.end()
}
