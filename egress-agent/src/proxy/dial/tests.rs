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
