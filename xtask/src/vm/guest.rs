//! Boots a kernel in qemu and runs tests in it.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{directory, image::Archive, kernels::Kernel, programs::TELL};
use crate::workspace;

/// What is run in every guest.
#[derive(Debug)]
pub(super) struct Guest {
    agent: PathBuf,
    /// The test program.
    tests: PathBuf,
    /// The first process.
    init: PathBuf,
}

/// What a guest has printed, and how it ended.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) lines: Vec<String>,
    /// What is wrong with the run as such.
    pub(super) failure: Option<String>,
    pub(super) took: Duration,
}

/// Modules by which the guest reaches the host's files.
const FOR_THE_ROOT: [&str; 3] = ["virtio_pci", "9p", "overlay"];
/// They need not be named to 9p, which finds its transport by itself, but they are not among what it depends on.
const TRANSPORT: &str = "9pnet_virtio";

/// Modules of protocols that tests want, and that Debian's kernels load for nobody who merely asks for a socket.
const FOR_THE_TESTS: [&str; 11] = [
    "tun",
    "ipip",
    "act_pedit",
    "act_csum",
    "sctp",
    "dccp_ipv4",
    "dccp_ipv6",
    "smc",
    "rxrpc",
    "l2tp_ip",
    "l2tp_ip6",
];

/// What the host waits for; see `vm-init`.
const RESULT: &str = "egress-vm-exit ";

/// How much longer an emulated machine may take; see the tests' `patience`.
const PATIENCE: u64 = 5;
/// No test may take longer than 150 s times that, and every test prints a line.
const SILENCE: Duration = Duration::from_secs(150 * PATIENCE + 50);
/// All tests of one guest.
const LIMIT: Duration = Duration::from_secs(45 * 60);

/// How often a guest is booted that its emulator brings down.
const BOOTS: usize = 3;

impl Guest {
    /// Copies the programs: who builds while a guest runs would take them from under it.
    pub(super) fn new(agent: &Path, tests: &Path, init: PathBuf) -> Result<Self> {
        let place = directory()?.join("programs");
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        let copy = |from: &Path, name: &str| {
            let to = place.join(name);
            fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            Ok::<_, anyhow::Error>(to)
        };
        // The tests look for their client beside themselves.
        copy(&agent.with_file_name("lab-client"), "lab-client")?;
        Ok(Self {
            agent: copy(agent, "egress-agent")?,
            tests: copy(tests, "promises")?,
            init,
        })
    }

    /// The names of all tests.
    pub(super) fn list(&self) -> Result<Vec<String>> {
        let output = Command::new(&self.tests)
            .args(["--list", "--format=terse"])
            .output()
            .with_context(|| format!("cannot run {}", self.tests.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text
            .lines()
            .filter_map(|line| line.strip_suffix(": test").map(str::to_owned))
            .collect())
    }

    /// Runs the tests `wanted` on `kernel`.
    ///
    /// # Errors
    ///
    /// The guest cannot be made. That it fails is told in what is returned.
    pub(super) fn run(&self, kernel: &Kernel, wanted: &[String]) -> Result<Ran> {
        let others: Vec<String> = self
            .list()?
            .into_iter()
            .filter(|name| !wanted.contains(name))
            .collect();
        let initramfs = directory()?.join(format!("{}.cpio", kernel.release));
        let archive = self.initramfs(kernel, &others)?;
        fs::write(&initramfs, archive).with_context(|| format!("cannot write {}", initramfs.display()))?;
        let mut boots = 1;
        loop {
            let ran = Self::boot(kernel, &initramfs)?;
            if boots == BOOTS || has_kvm() || !ran.is_fault_of_emulator() {
                return Ok(ran);
            }
            boots += 1;
            println!(
                "== Linux {}: the emulator ran an instruction that the kernel had replaced; boot {boots} of {BOOTS}",
                kernel.release
            );
        }
    }

    fn boot(kernel: &Kernel, initramfs: &Path) -> Result<Ran> {
        let begin = Instant::now();
        let mut qemu = qemu(&kernel.image()?, initramfs);
        let mut child = qemu
            .spawn()
            .with_context(|| format!("cannot run {}", workspace::describe(&qemu)))?;
        let log = directory()?.join(format!("{}.log", kernel.release));
        let ran = follow(&mut child, &kernel.wanted, &log);
        // It has told its result or is not to go on; what it wrote is gone with it in any case.
        drop(child.kill());
        child.wait().context("cannot wait for qemu")?;
        let (lines, failure) = ran?;
        Ok(Ran {
            lines,
            failure,
            took: begin.elapsed(),
        })
    }

    fn initramfs(&self, kernel: &Kernel, others: &[String]) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for directory in ["dev", "proc", "sys", "modules"] {
            archive.directory(directory);
        }
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        archive.file("init", &read(&self.init)?);
        let mut plan = String::new();
        let names: Vec<&str> = FOR_THE_ROOT.iter().copied().chain([TRANSPORT]).collect();
        for file in kernel.module_files(&names)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let name = name.trim_end_matches(".xz");
            archive.file(&format!("modules/{name}"), &decompressed(&file)?);
            plan.push_str(&format!("insmod /modules/{name}\n"));
        }
        plan.push_str(&self.plan(kernel, others)?);
        archive.file("plan", plan.as_bytes());
        Ok(archive.finish())
    }

    /// What `vm-init` is to do. The tests that are not wanted are named: the harness takes one filter only.
    fn plan(&self, kernel: &Kernel, others: &[String]) -> Result<String> {
        let tests = workspace::root().join("tests");
        let path = |path: &Path| {
            path.to_str()
                .map(str::to_owned)
                .context("a path that is not UTF-8")
        };
        let mut lines = vec![
            format!("modules {}", path(&kernel.modules())?),
            format!("keep {}", path(&workspace::root())?),
            format!("keep {}", path(&workspace::target()?)?),
            format!("directory {}", path(&tests)?),
            "env PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "env HOME=/tmp".to_owned(),
            "env LANG=C.UTF-8".to_owned(),
            format!("env {TELL}=1"),
            // The machine is the tests' alone, its clock included.
            "env EGRESS_TESTS_GUEST=1".to_owned(),
            format!(
                "env EGRESS_TESTS_PATIENCE={}",
                if has_kvm() { 1 } else { PATIENCE }
            ),
            format!("env EGRESS_AGENT={}", path(&self.agent)?),
            format!("word {}", path(&self.tests)?),
            // A test that prints would otherwise print into the line of its verdict.
            "word --test-threads=2".to_owned(),
            "word --exact".to_owned(),
            "word --color=never".to_owned(),
        ];
        // Later kernels have left some of them out.
        let there = FOR_THE_TESTS.iter().filter(|name| kernel.has_module(name));
        lines.extend(there.map(|name| format!("modprobe {name}")));
        lines.extend(others.iter().map(|name| format!("word --skip={name}")));
        Ok(lines.join("\n") + "\n")
    }
}

impl Ran {
    /// Whether the kernel met a breakpoint of its own that was gone already. It changes code under running processors by
    /// putting one there first (`smp_text_poke_batch_finish`, arch/x86/kernel/alternative.c). With several threads, qemu
    /// before 8.1 may go on with its translation of the breakpoint: seen with 7.2 in one boot of twelve, when the
    /// kernel decides on its clock. One thread for all processors has no such fault, and takes twice the time.
    fn is_fault_of_emulator(&self) -> bool {
        self.failure.is_some() && self.lines.iter().any(|line| line.contains("int3: 0000 ["))
    }
}

fn decompressed(module: &Path) -> Result<Vec<u8>> {
    if module.extension().is_none_or(|end| end != "xz") {
        return fs::read(module).with_context(|| format!("cannot read {}", module.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(module)
        .output()
        .context("cannot run xz")?;
    if !output.status.success() {
        bail!("xz: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// A machine with the host's files, a serial line and nothing else: no network leads out of it.
fn qemu(image: &Path, initramfs: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    if has_kvm() {
        qemu.args(["-accel", "kvm", "-cpu", "host"]);
    } else {
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
    }
    qemu.args(["-machine", "q35", "-m", "2048", "-smp", "2"])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-nic",
            "none",
            "-no-reboot",
        ])
        .args([
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
        ])
        .args([
            "-fsdev",
            "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        ])
        .args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        // Without mitigations, which emulation pays dearly for. A kernel that panics ends at once.
        .args([
            "-append",
            "console=ttyS0 quiet loglevel=1 panic=-1 mitigations=off random.trust_cpu=on",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    qemu
}

/// Where the processor shows no virtualisation of its own, /dev/kvm may be there and a guest hangs at its start.
fn has_kvm() -> bool {
    let usable = File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    usable
        && flags
            .split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
}

type Printed = (Vec<String>, Option<String>);

/// Shows and keeps what the guest prints, until it tells its result, ends, or is silent for too long.
fn follow(child: &mut Child, wanted: &str, log: &Path) -> Result<Printed> {
    let output = child.stdout.take().context("qemu's output")?;
    let lines = lines_of(output);
    let mut log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let begin = Instant::now();
    let mut printed: Vec<String> = Vec::new();
    loop {
        let left = LIMIT.saturating_sub(begin.elapsed()).min(SILENCE);
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let failure = match printed.iter().find(|line| is_last_word(line)) {
                    Some(line) => format!("the guest ended without a result: {line}"),
                    None => "the guest ended without a result, and its kernel did not say why".to_owned(),
                };
                return Ok((printed, Some(failure)));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let failure = format!(
                    "no result after {} s, and the last line {} s ago",
                    begin.elapsed().as_secs(),
                    left.as_secs()
                );
                return Ok((printed, Some(failure)));
            }
        };
        writeln!(log, "{line}")?;
        if let Some(status) = line.strip_prefix(RESULT) {
            // 101 is the harness's own word for failed tests.
            let failure =
                (!["0", "101"].contains(&status)).then(|| format!("the test program ended with {status}"));
            return Ok((printed, failure));
        }
        println!("{wanted:>6} {:>4} s | {line}", begin.elapsed().as_secs());
        printed.push(line);
    }
}

/// What a kernel says first when it cannot go on.
fn is_last_word(line: &str) -> bool {
    ["Oops: ", "BUG: ", "Kernel panic - "]
        .iter()
        .any(|word| line.contains(word))
}

fn lines_of(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::sync_channel(1000);
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if send.send(line).is_err() {
                return;
            }
        }
    });
    receive
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(line: &str, failure: Option<&str>) -> Ran {
        Ran {
            lines: vec![line.to_owned()],
            failure: failure.map(str::to_owned),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn only_a_guest_that_its_emulator_brought_down_is_booted_again() {
        let ended = Some("the guest ended without a result");
        for line in [
            "[    3.195633] Oops: int3: 0000 [#1] SMP NOPTI",
            "[    3.098093] int3: 0000 [#1] PREEMPT SMP NOPTI",
        ] {
            assert!(ran(line, ended).is_fault_of_emulator());
            assert!(!ran(line, None).is_fault_of_emulator());
        }
        let other = "[   31.0] BUG: kernel NULL pointer dereference, address: 0000000000000008";
        assert!(!ran(other, ended).is_fault_of_emulator());
    }
}
