//! How an enforcer comes to be in force: anew, in the place of an agent that was killed, or by a hand-over.

use std::time::Duration;

use anyhow::Context;
use egress_common::names::LAYOUT;

use super::{Enforcer, EnforcerSettings, handover::Predecessor, parts::Parts};
use crate::{
    instance::{Instance, Traces},
    kernel::{Attachment, Inheritance},
    netns::Netns,
};

/// By what right an agent has its name.
#[derive(Debug)]
pub enum Claim {
    /// Nobody living has it.
    Free(Instance),
    /// A living agent is ready to hand it over.
    Handed(Predecessor),
}

impl Enforcer {
    /// Loads everything, in an order that leaves no moment in which a connect would be passed: tables first, listeners
    /// next, the programs last. Must be called inside a runtime. If it fails nothing stays, but what an earlier agent had
    /// in force: that goes on serving, or refusing if it is dead.
    ///
    /// # Errors
    /// What is missing or refused, in a sentence.
    pub fn start(claim: Claim, settings: EnforcerSettings) -> anyhow::Result<Self> {
        match claim {
            Claim::Free(instance) => Self::begin(instance, settings),
            Claim::Handed(predecessor) => Self::succeed(predecessor, settings),
        }
    }

    fn begin(instance: Instance, settings: EnforcerSettings) -> anyhow::Result<Self> {
        let earlier = settings.may_inherit.then(|| instance.predecessor()).flatten();
        let inheritance = match (&earlier, settings.may_inherit) {
            (Some(earlier), _) => Inheritance::Layout(earlier.layout),
            (None, true) => Inheritance::Layout(0),
            (None, false) => Inheritance::None,
        };
        let attachment = match Attachment::load(instance.name(), &settings.cgroup, inheritance) {
            Ok(attachment) => attachment,
            Err(error) => {
                if earlier.is_none() {
                    instance
                        .release()
                        .context("cannot remove the state directory of a failed start")?;
                }
                return Err(error.into());
            }
        };
        let layout = earlier.as_ref().map_or(LAYOUT, |earlier| earlier.layout);
        let generation = earlier.map_or(0, |earlier| earlier.generation) + 1;
        let mut enforcer = Self::assemble(instance, attachment, settings, None, (layout, generation))?;
        match enforcer.take_up().and_then(|()| enforcer.put_in_force()) {
            Ok(()) => Ok(enforcer),
            Err(error) => {
                enforcer.stop_now();
                Err(error)
            }
        }
    }

    fn succeed(mut predecessor: Predecessor, settings: EnforcerSettings) -> anyhow::Result<Self> {
        let inheritance = Inheritance::Layout(predecessor.layout);
        let attachment = Attachment::load(predecessor.name(), &settings.cgroup, inheritance)?;
        let (instance, sites) = predecessor.may_begin()?;
        let past = (predecessor.layout, predecessor.generation + 1);
        let mut enforcer = Self::assemble(instance, attachment, settings, Some(predecessor.pid), past)?;
        let home = Netns::current();
        let dismissed = enforcer
            .sites
            .adopt(sites, &enforcer.workers)
            .and_then(|()| enforcer.sites.open(home?, &enforcer.workers))
            .map_err(anyhow::Error::from)
            .and_then(|()| enforcer.put_in_force())
            .and_then(|()| predecessor.dismiss());
        match dismissed {
            Ok(draining) => {
                enforcer.predecessor = draining;
                Ok(enforcer)
            }
            Err(error) => {
                enforcer.stop_now();
                Err(error)
            }
        }
    }

    /// `past` is the layout of the pinned maps and which agent in a row this is.
    fn assemble(
        instance: Instance,
        attachment: Attachment,
        settings: EnforcerSettings,
        predecessor: Option<u32>,
        past: (u32, u64),
    ) -> anyhow::Result<Self> {
        let (layout, generation) = past;
        let traces = Traces {
            pid: std::process::id(),
            pins: attachment.pin_path().to_path_buf(),
            cgroup: settings.cgroup.clone(),
            owns_cgroup: settings.owns_cgroup,
            // Until all programs use the new maps nobody may take them for what they are not.
            layout: if layout == LAYOUT { LAYOUT } else { 0 },
            generation,
        };
        let built = instance
            .note(&traces)
            .context("cannot note what has to be cleaned up")
            .and_then(|()| Parts::build(&instance, &attachment, &settings, predecessor));
        match built {
            Ok(parts) => Ok(parts.into_enforcer(instance, attachment, traces, settings)),
            Err(error) => {
                abandon(instance, attachment);
                Err(error)
            }
        }
    }

    /// Listens where an agent that was killed did, and in its own namespace.
    fn take_up(&mut self) -> anyhow::Result<()> {
        let home = Netns::current()?;
        if self.attachment.is_inherited() {
            tracing::info!(
                generation = self.traces.generation,
                pins = %self.attachment.pin_path().display(),
                "taking over from an agent that did not end by itself"
            );
            self.flows.sweep_dead()?;
            self.sites.reopen(&home, &self.workers)?;
        }
        Ok(self.sites.open(home, &self.workers)?)
    }

    fn put_in_force(&mut self) -> anyhow::Result<()> {
        self.attachment.attach()?;
        let census = self.sites.census()?;
        self.purge_what_was_before(&census);
        self.review_fences(&census);
        self.attachment.remove_stale_fences()?;
        if self.traces.layout != LAYOUT {
            self.traces.layout = LAYOUT;
            self.instance.note(&self.traces)?;
        }
        Ok(())
    }

    fn stop_now(self) {
        self.drain.start(Duration::ZERO);
        self.workers.join();
        abandon(self.instance, self.attachment);
    }
}

/// Undoes a failed start as far as nobody's enforcement depends on it.
fn abandon(instance: Instance, attachment: Attachment) {
    let keeps = attachment.is_inherited();
    if let Err(error) = attachment.abandon() {
        tracing::warn!(%error, "cannot remove the pins of a failed start");
    }
    if !keeps && let Err(error) = instance.release() {
        tracing::warn!(%error, "cannot remove the state directory of a failed start");
    }
}
