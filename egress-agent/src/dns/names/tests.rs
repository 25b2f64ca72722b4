use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn workload(name: &str) -> Workload {
    Workload {
        namespace: "team".to_owned(),
        name: name.to_owned(),
        ..Workload::default()
    }
}

fn name(text: &str) -> DomainName {
    DomainName::parse(text).unwrap()
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, number])
}

fn table(per_workload: usize, total: usize) -> Arc<NameTable> {
    Arc::new(NameTable::new(NameLimits {
        per_workload,
        total,
        ..NameLimits::default()
    }))
}

#[test]
fn what_one_workload_was_told_is_nothing_to_another() {
    let (table, now) = (table(10, 10), Instant::now());
    table.learn(&workload("a"), &name("db.test"), [(address(1), MINUTE)], now);

    assert_eq!(
        table.name_of(&workload("a"), address(1), now),
        Some(name("db.test"))
    );
    assert_eq!(table.name_of(&workload("b"), address(1), now), None);
    assert_eq!(table.name_of(&workload("a"), address(2), now), None);
    let elsewhere = Workload {
        namespace: "other".to_owned(),
        ..workload("a")
    };
    assert_eq!(table.name_of(&elsewhere, address(1), now), None);
}

#[test]
fn a_cgroup_below_the_workloads_own_is_the_same_workload() {
    let (table, now) = (table(10, 10), Instant::now());
    table.learn(&workload("a"), &name("db.test"), [(address(1), MINUTE)], now);
    let below = Workload {
        cgroup: "/a/child".to_owned(),
        ..workload("a")
    };
    assert_eq!(table.name_of(&below, address(1), now), Some(name("db.test")));
}

#[test]
fn a_mapped_address_is_the_ipv4_address_that_it_reaches() {
    let (table, now) = (table(10, 10), Instant::now());
    let mapped = "::ffff:198.51.100.1".parse().unwrap();
    table.learn(&workload("a"), &name("db.test"), [(mapped, MINUTE)], now);
    assert_eq!(
        table.name_of(&workload("a"), address(1), now),
        Some(name("db.test"))
    );
}

#[test]
fn several_names_of_one_address_are_all_told_the_newest_first() {
    let (table, now) = (table(10, 10), Instant::now());
    for text in ["one.test", "two.test", "three.test", "one.test"] {
        table.learn(&workload("a"), &name(text), [(address(1), MINUTE)], now);
    }
    let names = table.names_of(&workload("a"), address(1), now);
    assert_eq!(names, ["one.test", "three.test", "two.test"].map(name));
    assert_eq!(table.counts().entries, 3);
}

#[test]
fn a_short_time_to_live_is_stretched_to_the_floor_and_a_long_one_is_cut() {
    let (table, now) = (table(10, 10), Instant::now());
    let forever = Duration::from_secs(u32::MAX.into());
    let a = workload("a");
    table.learn(&a, &name("short.test"), [(address(1), Duration::ZERO)], now);
    table.learn(&a, &name("long.test"), [(address(2), forever)], now);

    let limits = NameLimits::default();
    let just_before = limits.floor - Duration::from_millis(1);
    assert!(table.name_of(&a, address(1), now + just_before).is_some());
    assert!(table.name_of(&a, address(1), now + limits.floor).is_none());
    assert!(table.name_of(&a, address(2), now + limits.ceiling).is_none());
    table.sweep(now + limits.floor);
    assert_eq!(table.counts().entries, 1);
    table.sweep(now + limits.ceiling);
    assert_eq!(table.counts().entries, 0);
}

#[test]
fn a_shorter_answer_never_shortens_what_a_longer_one_promised() {
    let (table, now) = (table(10, 10), Instant::now());
    let a = workload("a");
    table.learn(&a, &name("db.test"), [(address(1), 10 * MINUTE)], now);
    table.learn(&a, &name("db.test"), [(address(1), MINUTE)], now);
    assert!(table.name_of(&a, address(1), now + 9 * MINUTE).is_some());
}

#[test]
fn an_entry_in_use_outlives_its_time_and_the_floor_after_it() {
    let (table, now) = (table(10, 10), Instant::now());
    let a = workload("a");
    table.learn(&a, &name("db.test"), [(address(1), MINUTE)], now);
    let held = [(); 2].map(|()| table.hold(&a, address(1), &name("db.test"), now).unwrap());
    let [first, second] = held;
    let late = now + 100 * MINUTE;

    drop(first);
    table.sweep(late);
    assert!(
        table.name_of(&a, address(1), late).is_some(),
        "one of two users is left"
    );
    assert!(table.hold(&a, address(2), &name("db.test"), now).is_none());

    drop(second);
    assert!(
        table
            .name_of(&a, address(1), Instant::now() + MINUTE / 2)
            .is_some()
    );
    assert!(table.name_of(&a, address(1), late).is_none());
}

#[test]
fn a_workload_that_is_full_forgets_what_would_expire_first_and_nothing_of_others() {
    let (table, now) = (table(8, 100), Instant::now());
    let (a, b) = (workload("a"), workload("b"));
    table.learn(&b, &name("kept.test"), [(address(99), MINUTE)], now);
    for number in 0..8 {
        let lifetime = MINUTE * (u32::from(number) + 2);
        table.learn(&a, &name("db.test"), [(address(number), lifetime)], now);
    }
    let _in_use = table.hold(&a, address(0), &name("db.test"), now).unwrap();
    table.learn(&a, &name("db.test"), [(address(50), MINUTE)], now);

    assert!(table.name_of(&a, address(0), now).is_some(), "it is in use");
    assert!(
        table.name_of(&a, address(1), now).is_none(),
        "it would expire first"
    );
    assert!(table.name_of(&a, address(2), now).is_some());
    assert!(table.name_of(&a, address(50), now).is_some());
    assert!(table.name_of(&b, address(99), now).is_some());
    assert_eq!((table.counts().entries, table.counts().evicted), (9, 1));
}

#[test]
fn a_workload_whose_entries_are_all_in_use_learns_nothing_new() {
    let (table, now) = (table(2, 100), Instant::now());
    let a = workload("a");
    let held: Vec<_> = (0..2)
        .map(|number| {
            table.learn(&a, &name("db.test"), [(address(number), MINUTE)], now);
            table.hold(&a, address(number), &name("db.test"), now)
        })
        .collect();
    table.learn(&a, &name("new.test"), [(address(9), MINUTE)], now);
    assert!(table.name_of(&a, address(9), now).is_none());
    assert_eq!(table.counts().refused, 1);
    drop(held);
}

#[test]
fn a_full_table_takes_from_whoever_has_most() {
    let (table, now) = (table(100, 20), Instant::now());
    let greedy = workload("greedy");
    table.learn(&workload("small"), &name("db.test"), [(address(1), MINUTE)], now);
    for number in 0..200 {
        table.learn(&greedy, &name("db.test"), [(address(number), MINUTE)], now);
    }
    assert!(table.counts().entries <= 20);
    assert!(table.name_of(&workload("small"), address(1), now).is_some());
    assert!(
        table.name_of(&greedy, address(199), now).is_some(),
        "and still learns"
    );
}
