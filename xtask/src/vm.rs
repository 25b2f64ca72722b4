//! `cargo xtask vm`: the tests of the kernel programs on other kernels than the machine's, each booted in qemu.

mod guest;
mod image;
mod kernels;
mod programs;
mod verdict;

use std::{
    fs::File,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::fcntl::{Flock, FlockArg};

use self::{
    guest::{Guest, Ran},
    kernels::{Kernel, Kernels},
    programs::Programs,
    verdict::Verdicts,
};
use crate::{
    build,
    setup::{self, Purpose},
    test::{close, required::Required, tally::Tally},
    workspace,
};

/// The kernels that every change is tested on.
const MATRIX: [&str; 3] = ["6.1", "6.12", "newest"];

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Versions such as 6.1, or `newest`
    #[arg(default_values = MATRIX)]
    kernels: Vec<String>,

    /// Write what the kernels say of the programs' size to docs/programs.md, in place of comparing it
    #[arg(long, conflicts_with = "filters")]
    table: bool,

    /// Only the attempts to get past the enforcement, and what no other machine shows: what CI has the time for
    #[arg(long, conflicts_with_all = ["table", "filters"])]
    brief: bool,

    /// Only tests whose names contain one of these, in place of those that are meant for other kernels
    #[arg(last = true)]
    filters: Vec<String>,
}

/// The tests that ask whether the kernel does what the programs take for granted, whole files (`::` at the end) and
/// single ones. The others ask what the agent makes of bytes, times and files, which depends on no kernel.
const TESTS: [&str; 35] = [
    "attacks::",
    "clock::",
    "fence::",
    "inbound::",
    "packets::",
    "programs::",
    "protocols::",
    "sockets::",
    "dns::a_client_on_ipv6_sees_the_resolver_that_it_asked",
    "dns::a_client_sees_the_resolver_that_it_asked",
    "dns::a_foreign_search_domain_costs_musl_nothing",
    "dns::a_killed_agent_answers_nobody_and_lets_nothing_out",
    "dns::a_resolver_on_loopback_is_no_way_around",
    "dns::dns_over_tcp_is_judged_too",
    "dns::the_first_query_of_a_new_namespace_is_answered",
    "exec::a_command_that_outlives_its_parent_is_not_set_free",
    "exec::a_killed_agent_sets_nobody_free",
    "exec::an_agent_under_an_agent_allows_what_both_allow",
    "exec::loopback_servers_are_not_touched",
    "exec::nothing_is_left_behind_after_the_command_ends",
    "exec_privileges::the_command_cannot_detach_programs_or_change_maps",
    "exec_privileges::the_command_cannot_leave_its_cgroup",
    "lab::an_origin_sees_what_a_direct_client_does",
    "life::a_detached_link_is_attached_again_within_a_second",
    "life::a_hand_over_refuses_no_connect_and_cuts_no_tunnel",
    "life::a_replaced_program_is_put_back",
    "life::after_a_kill_the_next_agent_takes_over_without_a_gap",
    "life::cleanup_after_a_takeover_leaves_nothing",
    "life::maps_of_another_layout_are_replaced_without_a_gap",
    "life::removed_pins_are_made_again",
    "redirect::allowed_tls_name_works_and_is_logged_as_a_tunnel",
    "redirect::audit_lets_a_denied_name_pass_and_says_what_would_have_been",
    "redirect::children_and_grandchildren_are_judged_too",
    "redirect::denied_http_name_gets_a_403_and_reaches_neither_origin_nor_dns",
    "redirect::denied_tls_name_fails_at_once_and_reaches_neither_origin_nor_dns",
];

/// Those of them that CI runs: a kernel that lets something pass, or does not take the programs, and those that want what the
/// machine's own kernel need not have (`@vm` in tests/required.txt).
const BRIEF: [&str; 4] = [
    "attacks::",
    "clock::",
    "packets::what_root_in_the_namespace_makes_of_a_packet_does_not_leave",
    "programs::",
];

pub(crate) fn verb(arguments: &Arguments) -> Result<ExitCode> {
    let (tally, complaints) = run(arguments)?;
    Ok(close(&tally, &complaints))
}

/// The matrix in brief, for another verb: what came of it, and what is wrong with it beside.
pub(crate) fn brief() -> Result<(Tally, Vec<String>)> {
    run(&Arguments {
        kernels: MATRIX.map(str::to_owned).to_vec(),
        table: false,
        brief: true,
        filters: Vec::new(),
    })
}

fn run(arguments: &Arguments) -> Result<(Tally, Vec<String>)> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the kernels that this boots are for x86_64");
    }
    setup::ensure(&[Purpose::Build, Purpose::Demo, Purpose::Test, Purpose::Vm])?;
    let _alone = alone()?;
    let kernels = Kernels::open()?.obtain(&arguments.kernels)?;
    let guest = Guest::new(&build::agent(false)?, &build::tests()?, build::guest_init()?)?;
    let wanted = wanted(&guest.list()?, arguments)?;
    let mut verdicts = Verdicts::new(Required::read()?);
    let mut programs = Programs::default();
    for (kernel, ran) in kernels.iter().zip(all(&guest, &kernels, &wanted)?) {
        programs.add(kernel, &ran);
        verdicts.add(kernel, &ran, &wanted);
    }
    verdicts.print();
    let whole = arguments.kernels == MATRIX && arguments.filters.is_empty() && !arguments.table;
    let mut complaints = verdicts.complaints(whole);
    if arguments.table {
        programs.write()?;
    } else {
        let grown = programs.complaints()?;
        if !grown.is_empty() {
            println!("If that is meant, run `cargo xtask vm --table` and commit docs/programs.md.");
        }
        complaints.extend(grown);
    }
    Ok((verdicts.tally(), complaints))
}

/// Runs the kernels, as many at a time as there are processors: a guest that waits leaves its own to the others.
fn all(guest: &Guest, kernels: &[Kernel], wanted: &[String]) -> Result<Vec<Ran>> {
    let at_a_time = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((place, kernel)) = {
            let place = next.fetch_add(1, Ordering::Relaxed);
            kernels.get(place).map(|kernel| (place, kernel))
        } {
            println!("== Linux {}: {} tests", kernel.release, wanted.len());
            done.push((place, guest.run(kernel, wanted)));
        }
        done
    };
    let mut done: Vec<(usize, Result<Ran>)> = thread::scope(|scope| {
        let running: Vec<_> = (0..at_a_time.min(kernels.len()))
            .map(|_| scope.spawn(work))
            .collect();
        running
            .into_iter()
            .flat_map(|thread| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    });
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, ran)| ran).collect()
}

/// Of all tests those that are to be run.
fn wanted(all: &[String], arguments: &Arguments) -> Result<Vec<String>> {
    let Arguments {
        table,
        brief,
        filters,
        ..
    } = arguments;
    let meant: &[&str] = if *brief { &BRIEF } else { &TESTS };
    let matches = |name: &String| {
        if *table {
            name == programs::TEST
        } else if filters.is_empty() {
            meant.iter().any(|test| is_meant(test, name))
        } else {
            filters.iter().any(|filter| name.contains(filter))
        }
    };
    // A test that got another name would otherwise be left out in silence.
    if let Some(gone) = (TESTS.iter().chain(&BRIEF))
        .find(|test| !test.ends_with("::") && !all.iter().any(|name| is_meant(test, name)))
    {
        bail!("there is no test {gone} any more: put its new name into xtask/src/vm.rs");
    }
    let wanted: Vec<String> = all.iter().filter(|name| matches(name)).cloned().collect();
    if wanted.is_empty() {
        bail!("no test has such a name");
    }
    Ok(wanted)
}

fn is_meant(test: &str, name: &str) -> bool {
    if test.ends_with("::") {
        name.starts_with(test)
    } else {
        name == test
    }
}

/// One run at a time: another would take the programs from under the guests.
fn alone() -> Result<Flock<File>> {
    let path = directory()?.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, _)) => {
            eprintln!("waiting for the end of another run");
            Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, error)| error)
                .context("a lock")
        }
    }
}

/// Where kernels and what is made for the guests are kept.
fn directory() -> Result<std::path::PathBuf> {
    let directory = workspace::target()?.join("vm");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}
