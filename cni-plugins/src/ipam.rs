//! Where a pod's addresses come from: our own host-local, called in this process, or another program that the
//! operator put before it.

pub(crate) mod config;
pub(crate) mod delegate;
pub(crate) mod local;
pub(crate) mod range;
pub(crate) mod store;

use berth_api::cni::call::Call;
use berth_api::cni::config::Attachment;
use berth_api::cni::result::AddResult;
use serde_json::Value;

use crate::config::Network;
use crate::error::Error;
use delegate::Delegate;
use local::Local;

/// The IPAM of one network.
pub(crate) enum Ipam<'a> {
    /// The network gives no addresses.
    None,
    /// Our host-local.
    Local(Local<'a>),
    /// Another plugin.
    Delegate(Delegate<'a>),
}

impl<'a> Ipam<'a> {
    /// Reads the network's `ipam`.
    ///
    /// # Errors
    /// It has no type, a type that is found nowhere, or options that host-local refuses.
    pub(crate) fn of(call: &'a Call, network: &'a Network) -> Result<Self, Error> {
        let kind = match network.config.get("ipam") {
            None | Some(Value::Null) => return Ok(Ipam::None),
            Some(Value::Object(ipam)) if ipam.is_empty() => return Ok(Ipam::None),
            Some(Value::Object(ipam)) => match ipam.get("type") {
                Some(Value::String(kind)) => kind,
                Some(_) => return Err(Error::config("ipam.type", "is not a string")),
                None => return Err(Error::config("ipam.type", "is missing")),
            },
            Some(_) => return Err(Error::config("ipam", "is not an object")),
        };
        match delegate::find(kind, &call.path)? {
            Some(program) => Ok(Ipam::Delegate(Delegate { kind, program, call, network })),
            None => Ok(Ipam::Local(Local::of(call, network)?)),
        }
    }

    /// Takes addresses for the call's interface; a repetition gives the same.
    pub(crate) fn add(&self) -> Result<AddResult, Error> {
        match self {
            Ipam::None => Ok(AddResult::default()),
            Ipam::Local(local) => local.add(),
            Ipam::Delegate(delegate) => delegate.add(),
        }
    }

    /// Gives them back.
    pub(crate) fn del(&self) -> Result<(), Error> {
        match self {
            Ipam::None => Ok(()),
            Ipam::Local(local) => local.del(),
            Ipam::Delegate(delegate) => delegate.run().map(drop),
        }
    }

    /// Are they still taken?
    pub(crate) fn check(&self, result: &AddResult) -> Result<(), Error> {
        match self {
            Ipam::None => Ok(()),
            Ipam::Local(local) => local.check(result),
            Ipam::Delegate(delegate) => delegate.run().map(drop),
        }
    }

    /// Who else than `valid` holds addresses, as far as we can tell.
    pub(crate) fn stale(&self, valid: &[Attachment]) -> Result<Vec<Attachment>, Error> {
        match self {
            Ipam::Local(local) => local.stale(valid),
            Ipam::None | Ipam::Delegate(_) => Ok(Vec::new()),
        }
    }

    /// Frees it.
    pub(crate) fn gc(&self, valid: &[Attachment]) -> Result<(), Error> {
        match self {
            Ipam::None => Ok(()),
            Ipam::Local(local) => local.gc(valid),
            Ipam::Delegate(delegate) => delegate.run().map(drop),
        }
    }

    /// Is there an address left?
    pub(crate) fn status(&self) -> Result<(), Error> {
        match self {
            Ipam::None => Ok(()),
            Ipam::Local(local) => local.status(),
            Ipam::Delegate(delegate) => delegate.run().map(drop),
        }
    }
}
