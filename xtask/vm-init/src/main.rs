//! The first process of a guest that `cargo xtask vm` boots: makes the host's files the guest's own (read-only, with
//! what is written kept in memory), runs one command, tells its exit status, and switches the machine off.
//!
//! It is linked statically and alone in its initramfs but for the kernel modules that reach the host's files.
#![forbid(unsafe_code)]

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::chroot,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        wait::{WaitStatus, wait},
    },
    unistd::{Pid, sethostname},
};

/// What the host reads the result from: this word and the exit status.
const RESULT: &str = "egress-vm-exit";

/// What is to be done, as xtask has written it: `word value` a line.
#[derive(Debug, Default)]
struct Plan {
    /// Kernel modules of the initramfs, in the order in which they must be loaded.
    insmod: Vec<PathBuf>,
    /// Where the host has unpacked the modules that belong to this kernel.
    modules: PathBuf,
    /// Modules to be loaded once the host's files are there.
    modprobe: Vec<String>,
    /// Directories of the host that are wanted also if they are in one of those that begin empty here.
    keep: Vec<PathBuf>,
    directory: PathBuf,
    environment: Vec<(String, String)>,
    command: Vec<String>,
}

fn main() {
    let status = run().unwrap_or_else(|error| {
        println!("guest: {error:#}");
        // What a shell says of a command that it cannot run.
        126
    });
    println!("{RESULT} {status}");
    // The console is a serial line without a buffer that could lose the last line.
    drop(io::stdout().flush());
    match switch_off() {
        Ok(never) => match never {},
        // The end of the first process is a panic of the kernel, by which qemu ends too.
        Err(error) => println!("guest: cannot switch the machine off: {error}"),
    }
}

fn switch_off() -> nix::Result<Infallible> {
    nix::unistd::sync();
    reboot(RebootMode::RB_POWER_OFF)
}

fn run() -> Result<i32> {
    mount_at("/proc", "proc", MsFlags::empty(), "")?;
    mount_at("/sys", "sysfs", MsFlags::empty(), "")?;
    let plan = Plan::read(Path::new("/plan"))?;
    for module in &plan.insmod {
        insmod(module)?;
    }
    take_the_hosts_files()?;
    mount_the_usual(&plan.keep)?;
    plan.adopt_modules()?;
    sethostname("guest").context("hostname")?;
    run_and_reap(&plan)
}

impl Plan {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        let mut plan = Self::default();
        for line in text.lines() {
            let (word, value) = line.split_once(' ').with_context(|| format!("plan: {line}"))?;
            match word {
                "insmod" => plan.insmod.push(value.into()),
                "modules" => plan.modules = value.into(),
                "modprobe" => plan.modprobe.push(value.to_owned()),
                "keep" => plan.keep.push(value.into()),
                "directory" => plan.directory = value.into(),
                "env" => {
                    let (name, value) = value.split_once('=').with_context(|| format!("plan: {line}"))?;
                    plan.environment.push((name.to_owned(), value.to_owned()));
                }
                "word" => plan.command.push(value.to_owned()),
                _ => bail!("plan: {line}"),
            }
        }
        Ok(plan)
    }

    /// Puts the kernel's modules where it and modprobe look for them.
    fn adopt_modules(&self) -> Result<()> {
        let place = Path::new("/usr/lib/modules");
        bind(&self.modules, place)?;
        for module in &self.modprobe {
            let status = Command::new("/usr/sbin/modprobe").arg(module).status();
            if !status.context("modprobe")?.success() {
                bail!("modprobe {module} failed");
            }
        }
        Ok(())
    }
}

fn insmod(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("{}", path.display()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("insmod {}", path.display())),
    }
}

/// Makes the host's root directory this machine's, over it a layer in memory. The host does not let it be written in
/// any case.
fn take_the_hosts_files() -> Result<()> {
    let flags = MsFlags::MS_RDONLY;
    // Nobody changes the host's files meanwhile: what was read once need not be asked for again.
    let options = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";
    fs::create_dir_all("/host")?;
    mount(Some("host"), "/host", Some("9p"), flags, Some(options)).context("the host's files (9p)")?;
    mount_at("/layer", "tmpfs", MsFlags::empty(), "mode=0755")?;
    for directory in ["/layer/upper", "/layer/work", "/new"] {
        fs::create_dir_all(directory).context(directory)?;
    }
    let layers = "lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work";
    mount_at("/new", "overlay", MsFlags::empty(), layers)?;
    std::env::set_current_dir("/new").context("the new root")?;
    // A mere chroot would deny the tests their user namespaces: the root must be a mount of its own at `/`.
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("the new root")?;
    chroot(".").context("the new root")?;
    std::env::set_current_dir("/").context("the new root")
}

/// What a Linux system has mounted before the first user logs in.
fn mount_the_usual(keep: &[PathBuf]) -> Result<()> {
    let none = MsFlags::empty();
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_at("/proc", "proc", safe, "")?;
    mount_at("/sys", "sysfs", safe, "")?;
    mount_at("/dev", "devtmpfs", MsFlags::MS_NOSUID, "")?;
    mount_at("/dev/pts", "devpts", none, "mode=0620,ptmxmode=0666,gid=5")?;
    mount_at("/dev/shm", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "")?;
    let hidden = |path: &&PathBuf| ["/run", "/tmp"].iter().any(|place| path.starts_with(place));
    let kept: Vec<_> = keep.iter().filter(hidden).enumerate().collect();
    for (number, path) in &kept {
        bind(path, Path::new(&format!("/kept/{number}")))?;
    }
    mount_at("/run", "tmpfs", none, "mode=0755")?;
    mount_at("/tmp", "tmpfs", none, "mode=1777")?;
    for (number, path) in &kept {
        bind(Path::new(&format!("/kept/{number}")), path)?;
    }
    mount_at("/sys/fs/cgroup", "cgroup2", safe, "")?;
    mount_at("/sys/fs/bpf", "bpf", safe, "mode=0700")
}

fn bind(directory: &Path, place: &Path) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("mkdir {}", place.display()))?;
    mount(
        Some(directory),
        place,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("{} on {}", directory.display(), place.display()))
}

fn mount_at(place: &str, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("mkdir {place}"))?;
    mount(Some(kind), place, Some(kind), flags, Some(options))
        .with_context(|| format!("mount {kind} at {place}"))
}

/// Runs the command, and reaps what it leaves behind, as the first process must.
fn run_and_reap(plan: &Plan) -> Result<i32> {
    let (program, arguments) = plan.command.split_first().context("no command")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let up = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let up = up.split(' ').next().unwrap_or_default();
    println!("guest: Linux {}, ready after {up} s", release.trim());
    let child = Command::new(program)
        .args(arguments)
        .current_dir(&plan.directory)
        .env_clear()
        .envs(plan.environment.iter().map(|(name, value)| (name, value)))
        .spawn()
        .with_context(|| program.clone())?;
    let child = i32::try_from(child.id())
        .map(Pid::from_raw)
        .context("a process id")?;
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => return Ok(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                println!("guest: the command was ended by {signal}");
                return Ok(128 + signal as i32);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait"),
        }
    }
}
