//! Real clients that know nothing of the agent, and where to find them.

use std::{
    ffi::OsString,
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{agent::beside_us, lab::World, raw_client::Script, require::tool};

/// A command to be run as the workload.
#[derive(Debug, Clone)]
pub struct Client {
    /// The program's path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables it needs.
    pub environment: Vec<(String, String)>,
}

impl Client {
    /// A program of the system's.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            program: tool(name),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Arguments separated by spaces.
    #[must_use]
    pub fn words(mut self, words: &str) -> Self {
        self.arguments
            .extend(words.split_whitespace().map(OsString::from));
        self
    }

    /// One argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Several arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// The same as a line for the shell.
    #[must_use]
    pub fn line(&self) -> String {
        let words =
            std::iter::once(self.program.as_os_str()).chain(self.arguments.iter().map(OsString::as_os_str));
        words
            .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// A variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// curl that trusts the world's authority, prints nothing of its own but errors, and gives up after 30 s.
#[must_use]
pub fn curl(world: &World) -> Client {
    Client::new("curl")
        .words("--silent --show-error --max-time 30 --cacert")
        .arg(world.path("ca.pem"))
        .args(resolved(world))
}

/// Options with the addresses of the lab's names: the tests that have a name refused at the connect could not even look it
/// up. How names are looked up is for the tests of that.
fn resolved(world: &World) -> Vec<String> {
    let mut options = Vec::new();
    for name in ["good.test", "other.test"] {
        let Some(addresses) = world.zone.known_addresses(name) else {
            continue;
        };
        let addresses: Vec<String> = addresses
            .iter()
            .map(|ip| match ip {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            })
            .collect();
        for port in [80, 443] {
            options.push("--resolve".to_owned());
            options.push(format!("{name}:{port}:{}", addresses.join(",")));
        }
    }
    options
}

/// A shell command line.
#[must_use]
pub fn shell(line: &str) -> Client {
    Client::new("sh").arg("-c").arg(line)
}

/// A Python program. `world` is where the program's file goes: a long one is not for a command line.
#[must_use]
pub fn python(world: &World, name: &str, program: &str) -> Client {
    let file = world.file(&format!("{name}.py"), program);
    // Without site-packages and user settings: nothing but the interpreter.
    Client::new("python3").arg("-I").arg(file)
}

/// The lab's own client, which does what `script` says, step by step.
#[must_use]
pub fn raw(world: &World, script: &Script) -> Client {
    let text = serde_json::to_string(script).expect("a script is plain data");
    let mut name = String::from("script");
    // Several scripts in one world must not overwrite each other.
    while world.path(&name).exists() {
        name.push('+');
    }
    let file = world.file(&name, &text);
    Client {
        program: beside_us("lab-client"),
        arguments: vec![file.into()],
        environment: Vec::new(),
    }
}

/// Compiles a C program that depends on no library at run time.
///
/// # Panics
/// The compiler failed.
pub async fn compile_static(world: &World, name: &str, source: &str) -> Client {
    compile_with(world, "gcc", name, source).await
}

/// As [`compile_static`], by another compiler: `musl-gcc` for another C library.
///
/// # Panics
/// The compiler failed.
pub async fn compile_with(world: &World, compiler: &str, name: &str, source: &str) -> Client {
    let file = world.file(&format!("{name}.c"), source);
    let program = world.path(name);
    let output = tokio::process::Command::new(tool(compiler))
        .args(["-static", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&program)
        .arg(&file)
        .output()
        .await
        .expect("gcc runs");
    assert!(
        output.status.success(),
        "{compiler}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Client {
        program,
        arguments: Vec::new(),
        environment: Vec::new(),
    }
}

/// Whether a file is an ELF program without an interpreter, so that nothing can be preloaded into it.
///
/// # Panics
/// `readelf` failed.
pub async fn is_static(program: &Path) -> bool {
    let output = tokio::process::Command::new(tool("readelf"))
        .arg("-lW")
        .arg(program)
        .output()
        .await
        .expect("readelf runs");
    assert!(
        output.status.success(),
        "readelf: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    !String::from_utf8_lossy(&output.stdout).contains("INTERP")
}
