//! host-local: addresses from ranges in the configuration, kept as files on this host.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::Path;

use berth_api::cni::call::Call;
use berth_api::cni::config::Attachment;
use berth_api::cni::result::{AddResult, IpConfig};

use super::config::Config;
use super::range::RangeSet;
use super::store::{Lease, Store};
use crate::config::Network;
use crate::error::Error;

/// host-local for one call.
pub(crate) struct Local<'a> {
    config: Config,
    call: &'a Call,
    network: &'a Network,
    owner: Attachment,
}

impl<'a> Local<'a> {
    /// Reads the network's options.
    pub(crate) fn of(call: &'a Call, network: &'a Network) -> Result<Self, Error> {
        let owner = Attachment { container_id: call.container_id.clone(), ifname: call.ifname.clone() };
        Ok(Local { config: Config::of(call, network)?, call, network, owner })
    }

    /// One address of each set; those that the interface has already, if it has.
    pub(crate) fn add(&self) -> Result<AddResult, Error> {
        self.config.check_requested()?;
        let dns = self.config.dns()?;
        let mut store = step!("ipam_add::lock", Store::open(&self.config.data_dir, &self.network.name))?;
        let netns = self.call.netns.as_deref().unwrap_or(Path::new(""));
        let ips = match self.promised(&store)? {
            Some(ips) => ips,
            None => {
                let last = store.last()?;
                let ips = self.choose(&store, &last)?;
                store.promise(&self.owner, &ips)?;
                ips
            }
        };
        for ip in &ips {
            store.take(*ip, &self.owner, netns)?;
        }
        store.set_last(&ips.iter().copied().map(Some).collect::<Vec<_>>())?;
        drop(store);
        let ips = ips.iter().filter_map(|ip| {
            let range = self.config.sets.iter().find_map(|set| set.range_of(*ip))?;
            Some(IpConfig { address: range.with_prefix(*ip)?, gateway: Some(range.gateway), interface: None })
        });
        Ok(AddResult { ips: ips.collect(), routes: self.config.routes.clone(), dns, ..Default::default() })
    }

    /// What an earlier call promised, if it can still be kept. What cannot (the ranges were changed, or the call was
    /// killed before its lease was written and another took the address) is freed.
    fn promised(&self, store: &Store) -> Result<Option<Vec<IpAddr>>, Error> {
        let Some(ips) = store.of(&self.owner)? else { return Ok(None) };
        let mut good = ips.len() == self.config.sets.len();
        for (ip, set) in ips.iter().zip(&self.config.sets) {
            let can_be_ours = match store.lease(*ip)? {
                Lease::Free => true,
                Lease::Held(owner) => owner == self.owner,
            };
            good &= can_be_ours && set.range_of(*ip).is_some();
        }
        if good {
            return Ok(Some(ips));
        }
        store.free(&self.owner)?;
        Ok(None)
    }

    fn choose(&self, store: &Store, last: &[Option<IpAddr>]) -> Result<Vec<IpAddr>, Error> {
        let sets = self.config.sets.iter().enumerate();
        sets.map(|(i, set)| self.choose_of(set, store, last.get(i).copied().flatten())).collect()
    }

    fn choose_of(&self, set: &RangeSet, store: &Store, last: Option<IpAddr>) -> Result<IpAddr, Error> {
        if let Some(ip) = self.config.requested.iter().find(|ip| set.range_of(**ip).is_some()) {
            return match store.lease(*ip)? {
                Lease::Free => Ok(*ip),
                Lease::Held(owner) => {
                    let problem = format!("{ip} is held by {} of {}", owner.ifname, owner.container_id);
                    Err(Error::config("runtimeConfig.ips", problem))
                }
            };
        }
        for ip in set.after(last) {
            if store.lease(ip)? == Lease::Free {
                return Ok(ip);
            }
        }
        Err(Error::Exhausted { ranges: set.to_string(), network: self.network.name.clone() })
    }

    /// Gives back what the interface has.
    pub(crate) fn del(&self) -> Result<(), Error> {
        match step!("ipam_del::lock", self.open_if_there())? {
            Some(store) => store.free(&self.owner),
            None => Ok(()),
        }
    }

    /// Whether the addresses of `result` that are from our ranges are still the interface's.
    pub(crate) fn check(&self, result: &AddResult) -> Result<(), Error> {
        let store = self.open_if_there()?;
        for set in &self.config.sets {
            let ip = result.addresses().find(|ip| set.range_of(*ip).is_some());
            let ip = ip.ok_or_else(|| Error::Changed(format!("the result has no address of {set}")))?;
            let lease = store.as_ref().map_or(Ok(Lease::Free), |store| store.lease(ip))?;
            if lease != Lease::Held(self.owner.clone()) {
                let (ifname, id) = (&self.owner.ifname, &self.owner.container_id);
                return Err(Error::Changed(format!("{ip} is not leased to {ifname} of {id}")));
            }
        }
        Ok(())
    }

    /// Who else than `valid` holds, or was about to hold, an address.
    pub(crate) fn stale(&self, valid: &[Attachment]) -> Result<Vec<Attachment>, Error> {
        let Some(store) = self.open_if_there()? else { return Ok(Vec::new()) };
        let holders = store.all()?.into_iter().map(|(owner, _)| owner);
        let all: BTreeSet<Attachment> = store.owners()?.into_iter().chain(holders).collect();
        Ok(all.into_iter().filter(|owner| !valid.contains(owner)).collect())
    }

    /// Frees what is held by others than `valid`.
    pub(crate) fn gc(&self, valid: &[Attachment]) -> Result<(), Error> {
        let Some(store) = self.open_if_there()? else { return Ok(()) };
        let valid: HashSet<&Attachment> = valid.iter().collect();
        for owner in store.owners()?.into_iter().filter(|owner| !valid.contains(owner)) {
            step!("ipam_gc::free", store.free(&owner))?;
        }
        // Leases without an owner's link: the reference plugin's.
        let rest = store.all()?;
        rest.into_iter().filter(|(owner, _)| !valid.contains(owner)).try_for_each(|(_, ip)| store.clear(ip))
    }

    /// Whether each set has an address left.
    pub(crate) fn status(&self) -> Result<(), Error> {
        let Some(store) = self.open_if_there()? else { return Ok(()) };
        for set in &self.config.sets {
            let mut all = set.after(None);
            let free = loop {
                match all.next() {
                    Some(ip) if store.lease(ip)? == Lease::Free => break true,
                    Some(_) => {}
                    None => break false,
                }
            };
            if !free {
                let (name, dir) = (&self.network.name, self.config.data_dir.display());
                return Err(Error::NotAvailable(format!(
                    "every address of {set} of network {name:?} in {dir} is leased"
                )));
            }
        }
        Ok(())
    }

    fn open_if_there(&self) -> Result<Option<Store>, Error> {
        Store::open_if_there(&self.config.data_dir, &self.network.name)
    }
}

#[cfg(test)]
mod tests {
    use berth_api::cni::call::Verb;
    use serde_json::{Value, json};

    use super::*;

    struct Fixture {
        root: tempfile::TempDir,
        ranges: Value,
        extra: Value,
    }

    fn fixture(ranges: Value) -> Fixture {
        Fixture { root: tempfile::tempdir().unwrap(), ranges, extra: json!({}) }
    }

    impl Fixture {
        fn with<T>(&self, id: &str, run: impl FnOnce(Local<'_>) -> T) -> T {
            let json = json!({
                "cniVersion": "1.1.0", "name": "n", "runtimeConfig": self.extra,
                "ipam": {"type": "host-local", "ranges": self.ranges, "dataDir": self.root.path()},
            });
            let network = Network::new(json.as_object().unwrap().clone()).unwrap();
            let call = Call { container_id: id.into(), ifname: "eth0".into(), ..Call::new(Verb::Add) };
            run(Local::of(&call, &network).unwrap())
        }

        fn add(&self, id: &str) -> Result<Vec<String>, String> {
            let result = self.with(id, |local| local.add()).map_err(|e| e.to_string())?;
            Ok(result.ips.iter().map(|ip| ip.address.to_string()).collect())
        }

        fn del(&self, id: &str) {
            self.with(id, |local| local.del()).unwrap();
        }
    }

    fn small() -> Fixture {
        fixture(json!([[{"subnet": "10.0.0.0/29"}]]))
    }

    #[test]
    fn add_twice_gives_one_address() {
        let f = small();
        assert_eq!(f.add("a").unwrap(), ["10.0.0.2/29"]);
        assert_eq!(f.add("a").unwrap(), ["10.0.0.2/29"]);
        assert_eq!(f.add("b").unwrap(), ["10.0.0.3/29"]);
    }

    #[test]
    fn a_freed_address_is_given_again_last() {
        let f = small();
        f.add("a").unwrap();
        f.add("b").unwrap();
        f.del("a");
        f.del("a");
        let next: Vec<_> = ["c", "d", "e", "f"].iter().map(|id| f.add(id).unwrap().remove(0)).collect();
        assert_eq!(next, ["10.0.0.4/29", "10.0.0.5/29", "10.0.0.6/29", "10.0.0.2/29"]);
        let full = f.add("g").unwrap_err();
        assert_eq!(full, "no free address in 10.0.0.0/29 (10.0.0.1-10.0.0.6) of network \"n\"");
        let status = f.with("", |local| local.status()).unwrap_err().to_string();
        assert!(status.starts_with("not available: every address of 10.0.0.0/29"), "{status}");
        f.del("b");
        f.with("", |local| local.status()).unwrap();
    }

    #[test]
    fn dual_stack_gives_one_of_each_with_gateways() {
        let f = fixture(json!([[{"subnet": "10.0.0.0/29"}], [{"subnet": "fd00::/64", "gateway": "fd00::ff"}]]));
        let result = f.with("a", |local| local.add()).unwrap();
        let of: Vec<_> =
            result.ips.iter().map(|ip| (ip.address.to_string(), ip.gateway.unwrap().to_string())).collect();
        assert_eq!(of, [("10.0.0.2/29".into(), "10.0.0.1".into()), ("fd00::1/64".into(), "fd00::ff".to_string())]);
        f.with("a", |local| local.check(&result)).unwrap();
        f.del("a");
        assert!(f.with("a", |local| local.check(&result)).is_err());
    }

    #[test]
    fn a_requested_address_is_given_or_refused_with_its_holder() {
        let mut f = small();
        f.extra = json!({"ips": ["10.0.0.5"]});
        assert_eq!(f.add("a").unwrap(), ["10.0.0.5/29"]);
        assert_eq!(f.add("b").unwrap_err(), "runtimeConfig.ips: 10.0.0.5 is held by eth0 of a");
    }

    #[test]
    fn a_promise_without_a_lease_is_kept_or_given_up() {
        let f = small();
        let owner = |id: &str| Attachment { container_id: id.into(), ifname: "eth0".into() };
        let promise = |id: &str, ip: &str| {
            Store::open(f.root.path(), "n").unwrap().promise(&owner(id), &[ip.parse().unwrap()]).unwrap();
        };
        promise("a", "10.0.0.4");
        assert_eq!(f.add("a").unwrap(), ["10.0.0.4/29"]);
        promise("b", "10.0.0.4");
        assert_eq!(f.add("b").unwrap(), ["10.0.0.5/29"]);
        promise("c", "10.9.9.9");
        assert_eq!(f.add("c").unwrap(), ["10.0.0.6/29"]);
    }

    #[test]
    fn gc_frees_all_but_the_valid() {
        let f = small();
        ["a", "b", "c"].iter().for_each(|id| drop(f.add(id).unwrap()));
        std::fs::write(f.root.path().join("n/10.0.0.6"), "old\r\neth0").unwrap();
        let valid = [Attachment { container_id: "b".into(), ifname: "eth0".into() }];
        let stale = f.with("", |local| local.stale(&valid)).unwrap();
        assert_eq!(stale.iter().map(|owner| owner.container_id.as_str()).collect::<Vec<_>>(), ["a", "c", "old"]);
        f.with("", |local| local.gc(&valid)).unwrap();
        let left = Store::open(f.root.path(), "n").unwrap().all().unwrap();
        assert_eq!(left, [(valid[0].clone(), "10.0.0.3".parse().unwrap())]);
    }

    #[test]
    fn many_at_once_get_different_addresses() {
        let f = fixture(json!([[{"subnet": "10.0.0.0/24"}]]));
        let mut all: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|i| {
                    scope.spawn({
                        let f = &f;
                        move || f.add(&format!("p{i}")).unwrap()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 16);
    }

    #[test]
    fn del_without_a_directory_makes_none() {
        let f = small();
        f.del("a");
        assert_eq!(std::fs::read_dir(f.root.path()).unwrap().count(), 0);
    }
}
