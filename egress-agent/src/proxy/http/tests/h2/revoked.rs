//! New policies reach open streams one by one.

use super::*;

#[test]
fn a_stream_that_new_policies_refuse_is_reset_and_the_others_go_on() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (refused, mut upload) = client.send(get("good.test", "/refused"), false).await;
        let mut origin = Origin::accept(lab, "good.test").await;
        let (request, mut respond) = origin.next().await;
        let mut seen = request.into_body();
        tokio::task::spawn_local(origin.run());
        let mut answer = respond.send_response(Response::new(()), false).unwrap();
        answer.send_data("begin".into(), false).unwrap();
        let mut refused = refused.await.unwrap().into_body();
        assert_eq!(refused.data().await.unwrap().unwrap(), "begin");
        upload.send_data("first".into(), false).unwrap();
        assert_eq!(seen.data().await.unwrap().unwrap(), "first");

        let (allowed, _) = client.send(get("also.test", "/allowed"), true).await;
        let mut other = Origin::accept(lab, "also.test").await;
        let (_, mut respond) = other.next().await;
        tokio::task::spawn_local(other.run());

        lab.allow_only("also.test");

        assert!(refused.data().await.unwrap().unwrap_err().is_reset());
        assert!(
            seen.data().await.unwrap().unwrap_err().is_reset(),
            "the upload too"
        );
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data("whole".into(), true).unwrap();
        assert_eq!(read(allowed.await.unwrap()).await.body, b"whole");
        drop((upload, answer));
        client.vanish();
        let mut endings: Vec<_> = lab
            .records()
            .await
            .iter()
            .map(|record| record.ending.as_str())
            .collect();
        endings.sort_unstable();
        assert_eq!(endings, ["complete", "policy_changed"]);
    });
}

#[test]
fn a_stream_that_waits_for_its_answer_is_reset_too() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (response, _) = client.send(get("good.test", "/"), true).await;
        let mut origin = Origin::accept(lab, "good.test").await;
        let (_, _respond) = origin.next().await;
        tokio::task::spawn_local(origin.run());
        lab.allow_only("also.test");
        assert!(response.await.unwrap_err().is_reset());
        client.vanish();
        assert_eq!(lab.records().await[0].ending, Ending::PolicyChanged);
    });
}

#[test]
fn a_stream_to_an_address_that_is_denied_now_is_reset_and_the_next_one_is_refused() {
    run(async |lab: &mut Lab| {
        let client = Client::new(lab).await;
        let (response, _) = client.send(get("also.test", "/"), true).await;
        let mut origin = Origin::accept(lab, "also.test").await;
        let (_, mut respond) = origin.next().await;
        tokio::task::spawn_local(origin.run());
        let mut answer = respond.send_response(Response::new(()), false).unwrap();
        answer.send_data("begin".into(), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "begin");

        // The client has dialled another address, so the name is allowed still.
        lab.deny_address_of("also.test");
        assert!(body.data().await.unwrap().unwrap_err().is_reset());
        assert_eq!(client.get("also.test", "/again").await.head.status, 403);
        drop(answer);
        client.vanish();
        let records = lab.records().await;
        let told: Vec<_> = records
            .iter()
            .map(|record| (record.verdict.outcome, record.ending))
            .collect();
        assert_eq!(
            told,
            [
                (Outcome::AllowedByRule, Ending::PolicyChanged),
                (Outcome::ClusterDeny, Ending::Refused)
            ]
        );
    });
}
