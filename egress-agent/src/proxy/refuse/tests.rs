use std::{
    net::SocketAddr,
    process::{Output, Stdio},
};

use egress_common::outcome::{Class, Outcome};
use tokio::{io::AsyncReadExt, net::TcpListener, process::Command};

use super::*;
use crate::proxy::{
    limits::Limits,
    read_head::{Opening, read_head},
};

/// Both ends of a connection: ours and the client's.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (ours, _) = listener.accept().await.unwrap();
    (ours, client)
}

/// Accepts one connection, reads its hello and refuses it with `alert`.
async fn refuse_one(listener: TcpListener, alert: Alert) -> Opening {
    let (mut stream, _) = listener.accept().await.unwrap();
    let head = read_head(&mut stream, &Limits::default(), std::time::Instant::now(), None).await;
    assert_eq!(send_alert(stream, alert).await, 7);
    head.opening
}

/// Runs a real client against a listener that refuses it, and gives its output and how long it took.
async fn refused_client(alert: Alert, command: impl FnOnce(SocketAddr) -> Command) -> (Output, Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut command = command(listener.local_addr().unwrap());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let refusing = tokio::spawn(refuse_one(listener, alert));
    let started = std::time::Instant::now();
    let output = command
        .output()
        .await
        .expect("openssl and curl are needed for this test");
    let took = started.elapsed();
    assert!(matches!(refusing.await.unwrap(), Opening::Tls(_)));
    (output, took)
}

fn openssl(address: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args([
        "s_client",
        "-connect",
        &address.to_string(),
        "-servername",
        "denied.test",
    ]);
    command.args(arguments);
    command
}

#[test]
fn the_alert_for_a_refused_name_is_these_seven_bytes() {
    assert_eq!(
        Alert::AccessDenied.bytes(),
        [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x31]
    );
}

#[test]
fn every_denial_has_an_alert_and_nothing_else_has_one() {
    for outcome in Outcome::ALL {
        let is_denial = outcome.class() == Class::Deny;
        assert_eq!(Alert::for_outcome(*outcome).is_some(), is_denial, "{outcome:?}");
    }
}

#[tokio::test]
async fn openssl_says_access_denied_within_a_second() {
    // Also where it offers nothing above TLS 1.2 and TLS 1.0: the version in the record is not negotiated yet.
    for arguments in [&[][..], &["-tls1_2"], &["-tls1", "-cipher", "DEFAULT@SECLEVEL=0"]] {
        let (output, took) = refused_client(Alert::AccessDenied, |address| openssl(address, arguments)).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("alert access denied"), "{arguments:?}: {said}");
        assert!(!output.status.success());
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[tokio::test]
async fn openssl_names_every_alert_that_we_send() {
    for (alert, name) in [
        (Alert::UnexpectedMessage, "unexpected message"),
        (Alert::RecordOverflow, "record overflow"),
        (Alert::IllegalParameter, "illegal parameter"),
        (Alert::DecodeError, "decode error"),
        (Alert::ProtocolVersion, "alert protocol version"),
        (Alert::InternalError, "internal error"),
        (Alert::MissingExtension, "SSL alert number 109"),
        (Alert::UnrecognizedName, "unrecognized name"),
    ] {
        let (output, _) = refused_client(alert, |address| openssl(address, &[])).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(name), "{alert:?}: {said}");
    }
}

#[tokio::test]
async fn curl_says_access_denied_within_a_second() {
    let (output, took) = refused_client(Alert::AccessDenied, |address| {
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--noproxy", "*", "--resolve"])
            .arg(format!("denied.test:{}:{}", address.port(), address.ip()))
            .arg(format!("https://denied.test:{}/", address.port()));
        command
    })
    .await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("access denied"), "{said}");
    assert_eq!(output.status.code(), Some(35), "CURLE_SSL_CONNECT_ERROR: {said}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn the_alert_arrives_although_the_client_is_still_sending() {
    let (ours, mut client) = pair().await;
    client.write_all(&[0; 50_000]).await.unwrap();
    let refusing = tokio::spawn(send_alert(ours, Alert::AccessDenied));
    // The alert is there, and the client does not look yet.
    client.readable().await.unwrap();
    for _ in 0..1500 {
        client
            .write_all(&[0; 100])
            .await
            .expect("no reset while the client sends");
    }
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, Alert::AccessDenied.bytes());
    drop(client);
    assert_eq!(refusing.await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_closes_costs_a_second() {
    let (ours, client) = pair().await;
    let started = Instant::now();
    send_alert(ours, Alert::AccessDenied).await;
    assert_eq!(started.elapsed(), Patience::TLS.time);
    drop(client);
}

#[tokio::test]
async fn a_client_that_never_stops_sending_is_cut_off() {
    let (mut ours, mut client) = pair().await;
    let sending = tokio::spawn(async move {
        let mut sent = 0_usize;
        while let Ok(count) = client.write(&[0; 65536]).await {
            sent += count;
        }
        sent
    });
    let patience = Patience {
        time: Duration::from_secs(60),
        bytes: 1 << 20,
    };
    let started = std::time::Instant::now();
    close_after_answer(&mut ours, patience).await;
    drop(ours);
    assert!(sending.await.unwrap() >= 1 << 20);
    assert!(started.elapsed() < patience.time);
}

#[tokio::test]
async fn a_reset_is_a_reset() {
    let (ours, mut client) = pair().await;
    reset(ours);
    let error = client.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}
