use super::*;

#[test]
fn families_take_turns_beginning_with_the_one_the_workload_dialled() {
    let list = |text: &[&str]| {
        text.iter()
            .map(|address| address.parse().unwrap())
            .collect::<Vec<IpAddr>>()
    };
    let answers = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"];
    assert_eq!(
        interleave(list(&answers), "2001:db8::9".parse().unwrap()),
        list(&["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]),
    );
    assert_eq!(
        interleave(list(&answers), "192.0.2.9".parse().unwrap()),
        list(&["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"]),
    );
    assert_eq!(
        interleave(list(&["192.0.2.1", "192.0.2.2"]), "2001:db8::9".parse().unwrap()),
        list(&["192.0.2.1", "192.0.2.2"]),
        "no address of the dialled family",
    );
}

#[test]
fn an_address_that_is_denied_by_itself_is_not_dialled_for_any_name() {
    let candidates = |text: &[&str]| Candidates {
        addresses: text.iter().map(|address| address.parse().unwrap()).collect(),
        relation: AddressRelation::Mismatch,
    };
    let denied: IpAddr = "169.254.169.254".parse().unwrap();
    let refused = |address| (address == denied).then_some(Outcome::ClusterDeny);

    let left = candidates(&["169.254.169.254", "192.0.2.1"]).without(refused);
    let left = left.map(|left| left.addresses).map_err(|error| error.outcome);
    assert_eq!(left, Ok(vec!["192.0.2.1".parse().unwrap()]));
    let nothing = candidates(&["169.254.169.254"]).without(refused);
    assert_eq!(
        nothing.err().map(|error| error.outcome),
        Some(Outcome::ClusterDeny)
    );
}
