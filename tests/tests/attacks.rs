//! The attempts of attacks.yaml: nothing that is not allowed arrives at the far end of the workload's cable, and the one who
//! tries is told at once.

use std::{fs, path::Path};

use egress_tests::{
    attacks::{Class, Verdict, all, attempt, markdown, print},
    promises,
    require::Need,
};

promises![
    nothing_gets_out_by_connects,
    nothing_gets_out_by_datagrams,
    nothing_gets_out_by_borrowed_sockets,
    nothing_gets_out_by_names,
    nothing_gets_out_by_requests,
    nothing_gets_out_by_queries,
    nothing_gets_out_by_packets,
    nothing_gets_out_by_leaving,
    nothing_gets_out_by_sctp: [Need::Sctp],
    nothing_gets_out_by_dccp: [Need::Dccp],
    nothing_gets_out_by_smc: [Need::Smc],
    nothing_gets_out_by_rxrpc: [Need::Rxrpc],
    the_table_of_threats_is_current,
];

/// Makes the attempts, tells all of them, and fails for those that did not end as they should.
async fn hold(classes: &[Class]) {
    let told = attempt(classes).await;
    print(&told);
    let failed: Vec<String> = told
        .iter()
        .filter_map(|one| match &one.verdict {
            Verdict::Failed(why) => Some(format!("{}: {why}", one.attack.id)),
            Verdict::Held | Verdict::Open | Verdict::OutOfScope | Verdict::NotHere(_) => None,
        })
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(
        !told.is_empty(),
        "no attempt of {classes:?} stands in attacks.yaml"
    );
}

async fn nothing_gets_out_by_connects() {
    hold(&[Class::Tcp, Class::Address]).await;
}

async fn nothing_gets_out_by_datagrams() {
    hold(&[Class::Udp, Class::Raw]).await;
}

async fn nothing_gets_out_by_borrowed_sockets() {
    hold(&[Class::Socket]).await;
}

async fn nothing_gets_out_by_names() {
    hold(&[Class::Name]).await;
}

async fn nothing_gets_out_by_requests() {
    hold(&[Class::Http]).await;
}

async fn nothing_gets_out_by_queries() {
    hold(&[Class::Dns]).await;
}

async fn nothing_gets_out_by_packets() {
    hold(&[Class::Packet]).await;
}

async fn nothing_gets_out_by_leaving() {
    hold(&[Class::Leaving]).await;
}

async fn nothing_gets_out_by_sctp() {
    hold(&[Class::Sctp]).await;
}

async fn nothing_gets_out_by_dccp() {
    hold(&[Class::Dccp]).await;
}

async fn nothing_gets_out_by_smc() {
    hold(&[Class::Smc]).await;
}

async fn nothing_gets_out_by_rxrpc() {
    hold(&[Class::Rxrpc]).await;
}

/// Set, it is written anew.
const WRITE: &str = "EGRESS_TESTS_WRITE";
const BEGIN: &str = "<!-- made from tests/attacks.yaml: begin -->\n";
const END: &str = "<!-- made from tests/attacks.yaml: end -->\n";

async fn the_table_of_threats_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../THREATS.md");
    let text = fs::read_to_string(&path).expect("THREATS.md");
    let table = markdown(&all());
    let (before, rest) = text.split_once(BEGIN).expect("the table's begin");
    let (now, after) = rest.split_once(END).expect("the table's end");
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, [before, BEGIN, &table, END, after].concat()).expect("THREATS.md can be written");
    } else {
        assert!(
            now == table,
            "THREATS.md is not what tests/attacks.yaml says: run `{WRITE}=1 cargo xtask test the_table_of_threats`"
        );
    }
}
