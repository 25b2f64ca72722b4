//! The hand-over: a successor asks the agent that serves for its listeners, loads its own programs, puts them in the
//! place of the other's, and goes on accepting from the same queues. Whatever fails before the last word, the old agent
//! goes on.
//!
//! ```text
//! successor                                   predecessor
//! Hello ------------------------------------> same cgroup, same protocol?
//!       <------------------------------------ Welcome + lock, a Site + listeners for each namespace
//! loads its programs; nothing is changed yet
//! Ready ------------------------------------> stops accepting; connects wait in the listeners' queues
//!       <------------------------------------ Yours
//! fills the tables, replaces the programs, accepts
//! Done  ------------------------------------> drains, and ends without removing a pin
//!       <------------------------------------ Farewell
//! ```

mod channel;

use std::{
    fs::File,
    io,
    net::{TcpListener, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, bail, ensure};
use egress_common::{
    listener::{LISTENERS_PER_FAMILY, Listeners},
    names::LAYOUT,
};
use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use socket2::{SockRef, Type};
use tokio::io::{Interest, unix::AsyncFd};

pub use self::channel::Channel;
use self::channel::{Message, VERSION};
use super::Enforcer;
use crate::{
    instance::{Instance, handover_socket},
    netns::Netns,
    readiness,
};

/// The agent that serves, as its successor sees it, and what it has handed over.
#[derive(Debug)]
pub struct Predecessor {
    name: String,
    channel: Channel,
    lock: File,
    /// Its process.
    pub pid: u32,
    /// The layout of its maps.
    pub(super) layout: u32,
    /// How many agents have had the pins before.
    pub(super) generation: u64,
    sites: Vec<HandedSite>,
}

/// A network namespace with its listeners.
#[derive(Debug)]
pub(super) struct HandedSite {
    pub(super) netns: Netns,
    pub(super) table: Listeners,
    pub(super) listeners: Vec<TcpListener>,
    /// The name service, by the place of the resolver.
    pub(super) datagrams: Vec<(usize, UdpSocket)>,
}

/// A predecessor that drains: its end closes the channel.
#[derive(Debug)]
pub(super) struct Draining {
    pub(super) pid: u32,
    channel: AsyncFd<Channel>,
}

impl Predecessor {
    /// Asks the agent named `name` to hand over the enforcement of `cgroup`.
    ///
    /// # Errors
    /// It does not answer, does not know how to, or refuses; it goes on serving then, as it does when this is dropped.
    pub fn ask(name: &str, cgroup: &Path) -> anyhow::Result<Self> {
        let channel = Channel::call(&handover_socket(name)).with_context(|| {
            format!("the agent named `{name}` cannot be asked to hand over: stop it first")
        })?;
        let pid = channel.peer()?.cast_unsigned();
        channel.send(&Message::Hello {
            version: VERSION,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            cgroup: cgroup.to_path_buf(),
        })?;
        let (answer, descriptors) = channel.receive().context("the running agent does not answer")?;
        if let Message::Refused { why } = &answer {
            bail!("the running agent (pid {pid}) does not hand over: {why}");
        }
        let Message::Welcome {
            layout,
            generation,
            sites: count,
            agent,
        } = answer
        else {
            bail!("the running agent answers something else than it was asked");
        };
        tracing::info!(
            pid,
            version = agent,
            namespaces = count,
            "taking over from a running agent"
        );
        let [lock] = <[OwnedFd; 1]>::try_from(descriptors)
            .map_err(|_others| anyhow::anyhow!("the running agent did not pass its lock"))?;
        let mut sites = Vec::new();
        for _ in 0..count {
            sites.push(HandedSite::receive(&channel)?);
        }
        Ok(Self {
            name: name.to_owned(),
            channel,
            lock: lock.into(),
            pid,
            layout,
            generation,
            sites,
        })
    }

    /// The instance's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Says that everything slow is done. When this returns the other has stopped accepting.
    pub(super) fn may_begin(&mut self) -> anyhow::Result<(Instance, Vec<HandedSite>)> {
        self.channel.send(&Message::Ready)?;
        expect(&self.channel, |message| matches!(message, Message::Yours))
            .context("the running agent does not let go")?;
        let instance = Instance::handed(&self.name, self.lock.try_clone()?);
        Ok((instance, std::mem::take(&mut self.sites)))
    }

    /// Says that everything is in force.
    ///
    /// # Errors
    /// The other goes on serving, and we must not.
    pub(super) fn dismiss(self) -> anyhow::Result<Option<Draining>> {
        let dismissed = self
            .channel
            .send(&Message::Done)
            .map_err(anyhow::Error::from)
            .and_then(|()| expect(&self.channel, |message| matches!(message, Message::Farewell)));
        match dismissed {
            Ok(()) => {
                self.channel.set_nonblocking()?;
                Ok(Some(Draining {
                    pid: self.pid,
                    channel: readiness::watch(self.channel, Interest::READABLE)?,
                }))
            }
            // It died between two words: there is nobody else left to serve.
            Err(_) if kill(Pid::from_raw(self.pid.cast_signed()), None) == Err(Errno::ESRCH) => Ok(None),
            Err(error) => Err(error).context("the running agent did not let go in time, and goes on"),
        }
    }
}

impl HandedSite {
    fn receive(channel: &Channel) -> anyhow::Result<Self> {
        let (message, descriptors) = channel.receive().context("the running agent does not go on")?;
        let Message::Site { table } = message else {
            bail!("the running agent sends {message:?}");
        };
        let mut descriptors = descriptors.into_iter();
        let netns = descriptors.next().context("a site without a network namespace")?;
        let table = Listeners::from(table);
        let (mut listeners, mut datagrams) = (Vec::new(), Vec::new());
        for descriptor in descriptors {
            if SockRef::from(&descriptor).r#type()? != Type::DGRAM {
                listeners.push(TcpListener::from(descriptor));
                continue;
            }
            let socket = UdpSocket::from(descriptor);
            let slot = table.dns_slot(&socket.local_addr()?.into());
            datagrams.push((
                slot.context("a socket that is no place of the name service")?,
                socket,
            ));
        }
        ensure!(
            (1..=2 * LISTENERS_PER_FAMILY).contains(&listeners.len()),
            "a site with {} listeners",
            listeners.len()
        );
        for listener in &listeners {
            ensure!(
                SockRef::from(listener).is_listener()?,
                "a socket that does not listen"
            );
        }
        Ok(Self {
            netns: Netns::from_file(File::from(netns))?,
            table,
            listeners,
            datagrams,
        })
    }
}

impl Draining {
    /// Waits until its process has ended.
    pub(super) async fn ended(&self) {
        // It says nothing more: what makes the channel readable is its end. An error is an end too.
        drop(self.channel.readable().await.map(|_guard| ()));
    }
}

impl Enforcer {
    /// Serves a successor. `Some` if it has taken over, and this agent has only to drain; the channel is to be kept until
    /// this process ends. The whole takes some tens of milliseconds and blocks this thread, which accepts nothing itself.
    pub(super) fn hand_over(&mut self, asked: io::Result<Channel>) -> Option<Channel> {
        let mut has_paused = false;
        let handed = asked
            .map_err(anyhow::Error::from)
            .and_then(|channel| self.negotiate(&channel, &mut has_paused).map(|()| channel));
        match handed {
            Ok(channel) => {
                tracing::info!("a successor has taken over");
                Some(channel)
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "a hand-over has failed: this agent goes on"
                );
                if has_paused && let Err(error) = self.resume() {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "cannot go on as before a failed hand-over"
                    );
                }
                None
            }
        }
    }

    fn negotiate(&self, channel: &Channel, has_paused: &mut bool) -> anyhow::Result<()> {
        let (
            Message::Hello {
                version,
                agent,
                cgroup,
            },
            _,
        ) = channel.receive()?
        else {
            bail!("it did not say who it is");
        };
        let refusal = if version != VERSION {
            Some(format!(
                "it speaks version {VERSION} of the hand-over, not {version}"
            ))
        } else if cgroup != self.cgroup {
            Some(format!(
                "it enforces {}, not {}",
                self.cgroup.display(),
                cgroup.display()
            ))
        } else {
            None
        };
        if let Some(why) = refusal {
            channel.send(&Message::Refused { why: why.clone() })?;
            bail!(why);
        }
        tracing::info!(
            version = agent,
            pid = channel.peer()?,
            "handing over to a successor"
        );
        let welcome = Message::Welcome {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            layout: LAYOUT,
            generation: self.traces.generation,
            sites: self.sites.len(),
        };
        channel.send_with(&welcome, &[self.instance.lock()])?;
        for (site, listeners) in self.sites.all() {
            let mut descriptors = vec![site.netns().as_fd()];
            descriptors.extend(listeners.iter().map(AsFd::as_fd));
            descriptors.extend(site.places().iter().map(|(_, socket)| socket.as_fd()));
            let table = site.listeners().into();
            channel.send_with(&Message::Site { table }, &descriptors)?;
        }
        expect(channel, |message| matches!(message, Message::Ready))?;
        *has_paused = true;
        self.sites.pause();
        channel.send(&Message::Yours)?;
        expect(channel, |message| matches!(message, Message::Done))?;
        Ok(channel.send(&Message::Farewell)?)
    }

    /// Goes on as if no successor had come: it may have changed tables, programs, pins and notes before it failed.
    fn resume(&mut self) -> anyhow::Result<()> {
        self.sites.resume(&self.workers)?;
        self.mend();
        self.instance.note(&self.traces)?;
        self.refill()
    }
}

fn expect(channel: &Channel, is_expected: impl Fn(&Message) -> bool) -> anyhow::Result<()> {
    let (message, _) = channel.receive()?;
    ensure!(is_expected(&message), "it said {message:?}");
    Ok(())
}
