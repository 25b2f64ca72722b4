//! Links that outlive whoever made them: opened again by their pin, given another program without a moment in between,
//! and asked what they are attached to. aya 0.14 can do none of the three for cgroup links, nor pin one of setsockopt(2), so
//! this speaks bpf(2) itself.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

// Commands of bpf(2), include/uapi/linux/bpf.h.
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;

/// An attachment to a cgroup or to an interface. Closing it detaches nothing as long as it is pinned.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
}

/// What a link is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LinkState {
    /// The kernel's number of the link.
    pub(super) id: u32,
    /// The kernel's number of the program that it runs.
    pub(super) program: u32,
    /// Id of the cgroup, or index of the interface; 0 once it is detached, by force or because that is gone.
    pub(super) target: u64,
}

/// Which packets of an interface a program sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Those that the interface receives: BPF_TCX_INGRESS.
    Ingress = 46,
    /// Those that it sends: BPF_TCX_EGRESS.
    Egress = 47,
}

/// Which calls or packets of a cgroup a program sees: `enum bpf_attach_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Ingress = 0,
    Egress = 1,
    SockCreate = 2,
    SockOps = 3,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Setsockopt = 22,
    Getpeername4 = 29,
    Getpeername6 = 30,
    Getsockname4 = 31,
    Getsockname6 = 32,
    SockRelease = 34,
}

/// `struct { __aligned_u64 pathname; __u32 bpf_fd; ... }` of `union bpf_attr`.
#[repr(C)]
struct ObjectPath {
    pathname: u64,
    fd: u32,
    flags: u32,
}

/// `struct { __u32 bpf_fd; __u32 info_len; __aligned_u64 info; } info`.
#[repr(C)]
struct ObjectInfo {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct { __u32 link_fd; __u32 new_prog_fd; __u32 flags; __u32 old_prog_fd; } link_update`.
#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// `struct { __u32 prog_fd; __u32 target_fd or target_ifindex; __u32 attach_type; __u32 flags; ... } link_create` with its
/// member `tcx`, all zeros for a cgroup.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    reserved: u32,
    expected_revision: u64,
}

/// BPF_F_BEFORE: without another program to be before, it is before all.
const BEFORE_ALL: u32 = 1 << 3;

/// The beginning of `struct bpf_link_info`, with the member `cgroup` of its union; the member `tcx` begins with the index
/// of the interface and is as long as the first field of `cgroup`.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    target: u64,
    attach_type: u32,
    reserved_too: u32,
}

impl LinkInfo {
    /// Its size as the kernel counts it.
    const LENGTH: u32 = 32;
}

const _: () = assert!(size_of::<LinkInfo>() == LinkInfo::LENGTH as usize);

impl Link {
    /// Opens the link that is pinned at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let name = c_path(path)?;
        let mut attributes = ObjectPath {
            pathname: name.as_ptr() as u64,
            fd: 0,
            flags: 0,
        };
        // SAFETY: the name lives until after the call.
        let fd = unsafe { bpf(OBJ_GET, &mut attributes) }?;
        // SAFETY: the kernel has just made this descriptor for us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let link = Self { fd };
        // A map or a program may be pinned there instead: it has no such information.
        link.state()?;
        Ok(link)
    }

    /// Attaches a program to a cgroup, beside those that are there: links are always in the kernel's multi mode.
    pub(super) fn to_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Self> {
        Self::create(program, number(cgroup), hook as u32, 0)
    }

    /// Attaches a program to an interface of the agent's network namespace, before all that are there (Linux 6.6).
    pub(super) fn to_interface(
        program: BorrowedFd<'_>,
        interface: u32,
        direction: Direction,
    ) -> io::Result<Self> {
        Self::create(program, interface, direction as u32, BEFORE_ALL)
    }

    fn create(program: BorrowedFd<'_>, target: u32, attach_type: u32, flags: u32) -> io::Result<Self> {
        let mut attributes = LinkCreate {
            program: number(program),
            target,
            attach_type,
            flags,
            relative: 0,
            reserved: 0,
            expected_revision: 0,
        };
        // SAFETY: no pointers.
        let fd = unsafe { bpf(LINK_CREATE, &mut attributes) }?;
        // SAFETY: the kernel has just made this descriptor for us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Pins it at `path`, instead of whatever is pinned there now and without a moment in which nothing is.
    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_file_name(format!("{}_next", path.file_name().unwrap_or_default().display()));
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let name = c_path(&beside)?;
        let mut attributes = ObjectPath {
            pathname: name.as_ptr() as u64,
            fd: number(self.fd.as_fd()),
            flags: 0,
        };
        // SAFETY: the name lives until after the call.
        unsafe { bpf(OBJ_PIN, &mut attributes) }?;
        fs::rename(beside, path)
    }

    /// Lets the link run another program of the same type from now on. Every call of the hook runs the one or the other.
    pub(super) fn replace(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attributes = LinkUpdate {
            link: number(self.fd.as_fd()),
            program: number(program),
            flags: 0,
            old_program: 0,
        };
        // SAFETY: no pointers.
        unsafe { bpf(LINK_UPDATE, &mut attributes) }.map(|_zero| ())
    }

    /// Asks the kernel what it is.
    pub(super) fn state(&self) -> io::Result<LinkState> {
        let mut info = LinkInfo::default();
        let mut attributes = ObjectInfo {
            fd: number(self.fd.as_fd()),
            length: LinkInfo::LENGTH,
            info: (&raw mut info) as u64,
        };
        // SAFETY: the kernel writes at most `length` bytes of plain numbers to `info`, which lives until after the call.
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
        let [a, b, c, d, ..] = info.target.to_ne_bytes();
        let target = match info.kind {
            CGROUP_LINK => info.target,
            TCX_LINK => u64::from(u32::from_ne_bytes([a, b, c, d])),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(LinkState {
            id: info.id,
            program: info.program,
            target,
        })
    }
}

/// BPF_LINK_TYPE_CGROUP.
const CGROUP_LINK: u32 = 3;
/// BPF_LINK_TYPE_TCX.
const TCX_LINK: u32 = 11;

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Descriptors of open files are not negative.
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// bpf(2). The kernel takes attributes that are shorter than its own and reads the rest as zeros.
///
/// # Safety
/// Pointers within `attributes` must be valid for what the command does with them.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attributes` is live and of the size told; the caller vouches for what it points to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}
