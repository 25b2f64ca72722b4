//! Links that outlive whoever made them: opened again by their pin, given another program without a moment in between,
//! and asked what they are attached to. aya 0.14 can do none of the three for cgroup links, so this speaks bpf(2) itself.

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
const LINK_UPDATE: libc::c_int = 29;

/// An attachment to a cgroup. Closing it detaches nothing as long as it is pinned.
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
    /// Id of the cgroup; 0 once it is detached, by force or because the cgroup is gone.
    pub(super) cgroup: u64,
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

/// The beginning of `struct bpf_link_info`, with the member `cgroup` of its union.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    cgroup: u64,
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
        if info.kind != CGROUP_LINK {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(LinkState {
            id: info.id,
            program: info.program,
            cgroup: info.cgroup,
        })
    }
}

/// BPF_LINK_TYPE_CGROUP.
const CGROUP_LINK: u32 = 3;

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
