//! What the agents of a world leave if they are killed: pins, which keep programs and maps in the kernel.

use std::{
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
};

use super::Cgroup;
use crate::agent::program;

const PINS: &str = "/sys/fs/bpf/egress";

/// Removes what is left of them when it is dropped, which is to be after their end.
#[derive(Debug)]
pub(crate) struct Agents {
    /// The instance of the daemon.
    daemon: String,
    /// Every process of this world: that of an `exec` gives its instance the name.
    started: Mutex<Vec<i32>>,
}

impl Agents {
    pub(super) fn of(cgroup: &Cgroup) -> Self {
        let name = cgroup.path().file_name().unwrap_or_default();
        Self {
            daemon: format!("test-{}", name.display()),
            started: Mutex::default(),
        }
    }

    pub(crate) fn started(&self, pid: i32) {
        self.started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(pid);
    }

    fn instances(&self) -> Vec<String> {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let of_exec = started.iter().map(|pid| format!("exec-{pid}"));
        of_exec
            .chain([self.daemon.clone()])
            .filter(|instance| Path::new(PINS).join(instance).exists())
            .collect()
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        let instances = self.instances();
        if instances.is_empty() {
            return;
        }
        let cleaned = Command::new(program()).arg("cleanup").args(&instances).output();
        let complaint = match cleaned {
            Ok(output) if output.status.success() => return,
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        eprintln!("cannot clean up after {}: {complaint}", instances.join(", "));
    }
}
