//! The scenes in which curl asks for something.

use egress_tests::squid_log::{self, Line};

use crate::{
    stage::{ALLOWED, ALLOWED_ADDRESS, DENIED, DENIED_ADDRESS, Stage},
    story::Story,
};

/// What curl exits with when a name has no address.
const NOT_RESOLVED: i32 = 6;

/// What curl exits with when the handshake fails.
const TLS_ERROR: i32 = 35;

pub(crate) async fn without_the_enforcer(stage: &Stage, story: &mut Story) {
    story.scene("Without the enforcer, both names answer");
    for name in [ALLOWED, DENIED] {
        let done = stage.curl_directly(story, &format!("https://{name}/")).await;
        story.check(
            done.text() == format!("hello from {name}\n"),
            &format!("{name} answers"),
        );
    }
}

pub(crate) async fn an_allowed_name(stage: &Stage, story: &mut Story) {
    story.scene("The same curl under the enforcer, a name that the policy allows");
    story.check(
        stage.explain(story, &format!("https://{ALLOWED}/")).await == 0,
        "the verdict: allowed",
    );
    let before = stage.witnessed().await;
    let done = stage.curl_enforced(story, &format!("https://{ALLOWED}/")).await;
    let after = stage.witnessed().await;

    story.check(
        done.text() == format!("hello from {ALLOWED}\n"),
        "curl has its answer, and knows of no proxy",
    );
    let new = after.allowed.get(before.allowed.len()..).unwrap_or_default();
    let name = new.first().and_then(|seen| seen.server_name.as_deref());
    story.check(
        new.len() == 1 && name == Some(ALLOWED),
        "the origin saw one connection, and did the TLS handshake with curl itself",
    );
    story.check(
        after.asked == [ALLOWED],
        "the enforcer looked this name up itself, and no other",
    );
    let expected = format!("CONNECT {ALLOWED}:443 200 TCP_TUNNEL:HIER_DIRECT");
    story.check(
        gist(&done.log) == [expected],
        "one line in squid's words: a tunnel",
    );
}

pub(crate) async fn a_denied_name(stage: &Stage, story: &mut Story) {
    story.scene("A name that no rule allows");
    story.check(
        stage.explain(story, &format!("https://{DENIED}/")).await == 1,
        "the verdict: denied",
    );
    let before = stage.witnessed().await;
    let done = stage.curl_enforced(story, &format!("https://{DENIED}/")).await;
    story.check(
        done.code() == NOT_RESOLVED,
        "it cannot even be looked up: as far as curl can tell it does not exist",
    );
    story.say("A program that knows the address gets no further:");
    let words = format!("--resolve {DENIED}:443:{DENIED_ADDRESS} https://{DENIED}/");
    let done = stage.curl_enforced(story, &words).await;
    let after = stage.witnessed().await;

    story.check(
        done.code() == TLS_ERROR,
        "curl is told by a TLS alert, not by a silence",
    );
    story.check(
        done.took.as_secs_f32() < 1.0,
        &format!(
            "at once: in {:.2} s, start and end included",
            done.took.as_secs_f32()
        ),
    );
    story.check(
        after.denied.len() == before.denied.len(),
        "the origin never saw a connection",
    );
    story.check(
        !after.asked.iter().any(|name| name == DENIED),
        "the enforcer's DNS server was never asked for the name",
    );
    let expected = format!("CONNECT {DENIED}:443 403 TCP_DENIED:HIER_NONE");
    story.check(gist(&done.log) == [expected], "one line in squid's words: denied");
}

pub(crate) async fn a_denied_name_in_clear(stage: &Stage, story: &mut Story) {
    story.scene("The same in clear: HTTP can say why");
    let before = stage.witnessed().await;
    let done = stage
        .curl_enforced(
            story,
            &format!("-i --resolve {DENIED}:80:{DENIED_ADDRESS} http://{DENIED}/secrets?key=1"),
        )
        .await;
    let after = stage.witnessed().await;

    story.check(done.text().starts_with("HTTP/1.1 403 "), "curl is told by a page");
    story.check(
        after.denied.len() == before.denied.len(),
        "the origin never saw a connection",
    );
    let expected = format!("GET http://{DENIED}/secrets?key=1 403 TCP_DENIED:HIER_NONE");
    story.check(
        gist(&done.log) == [expected],
        "one line in squid's words: denied, with the URL",
    );
}

pub(crate) async fn a_forged_name(stage: &Stage, story: &mut Story) {
    story.scene("An allowed name, sent to the denied address");
    story.say(&format!(
        "A program that wants out may dial any address and claim any name. The name on the wire decides, and the\n\
         enforcer dials an address that it looked up for that name itself: the claim leads to {ALLOWED_ADDRESS}."
    ));
    let before = stage.witnessed().await;
    let words = format!("--connect-to {ALLOWED}:443:{DENIED_ADDRESS}:443 https://{ALLOWED}/");
    let done = stage.curl_enforced(story, &words).await;
    let after = stage.witnessed().await;

    story.check(
        done.text() == format!("hello from {ALLOWED}\n"),
        "the true owner of the name answers",
    );
    let new = after.allowed.get(before.allowed.len()..).unwrap_or_default();
    story.check(
        new.len() == 1
            && new
                .iter()
                .all(|seen| seen.local.ip().to_string() == ALLOWED_ADDRESS),
        &format!("the connection arrived at {ALLOWED_ADDRESS}"),
    );
    story.check(
        after.denied.len() == before.denied.len(),
        &format!("{DENIED_ADDRESS} never saw it"),
    );
}

fn gist(log: &str) -> Vec<String> {
    squid_log::combined(log).iter().map(Line::gist).collect()
}
