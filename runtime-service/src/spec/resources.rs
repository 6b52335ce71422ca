//! Limits of a container, in the OCI spec's words.

use berth_api::cri::{HugepageLimit, LinuxContainerResources};
use serde_json::{Map, Value, json};

use super::{Input, Invalid, devices};

/// `linux.resources` of a new container.
pub(super) fn build(input: &Input<'_>, privileged: bool) -> Result<Value, Invalid> {
    let mut out = match input.config.linux.as_ref().and_then(|l| l.resources.as_ref()) {
        Some(asked) => limits("config.linux.resources", asked, input.cgroup_v2)?,
        None => json!({}),
    };
    out["devices"] = devices::rules(input.devices, privileged);
    Ok(out)
}

/// What `asked` limits; `field` is its path in the request. Zero means "not set" for every CRI number.
///
/// # Errors
/// The first field that cannot be honoured.
pub(crate) fn limits(field: &str, asked: &LinuxContainerResources, cgroup_v2: bool) -> Result<Value, Invalid> {
    let mut out = json!({});
    let not_negative = |name: &str, value: i64, minus_one: bool| match value {
        v if v >= 0 || (minus_one && v == -1) => Ok(v),
        v => Err(Invalid::new(format!("{field}.{name}"), format!("{v} is negative"))),
    };

    let mut cpu = Map::new();
    let set = |map: &mut Map<String, Value>, key: &str, value: i64| {
        if value != 0 {
            map.insert(key.into(), value.into());
        }
    };
    set(&mut cpu, "shares", not_negative("cpu_shares", asked.cpu_shares, false)?);
    set(&mut cpu, "quota", not_negative("cpu_quota", asked.cpu_quota, true)?);
    set(&mut cpu, "period", not_negative("cpu_period", asked.cpu_period, false)?);
    for (key, name, list) in [("cpus", "cpuset_cpus", &asked.cpuset_cpus), ("mems", "cpuset_mems", &asked.cpuset_mems)]
    {
        if !list.is_empty() {
            check_list(list).map_err(|problem| Invalid::new(format!("{field}.{name}"), problem))?;
            cpu.insert(key.into(), list.as_str().into());
        }
    }
    if !cpu.is_empty() {
        out["cpu"] = cpu.into();
    }

    let mut memory = Map::new();
    let limit = not_negative("memory_limit_in_bytes", asked.memory_limit_in_bytes, false)?;
    let swap = not_negative("memory_swap_limit_in_bytes", asked.memory_swap_limit_in_bytes, true)?;
    set(&mut memory, "limit", limit);
    // CRI's swap limit counts memory and swap together, as the OCI spec does.
    if swap != 0 {
        if swap > 0 && swap < limit {
            return Err(Invalid::new(
                format!("{field}.memory_swap_limit_in_bytes"),
                format!("{swap} counts memory and swap together and is below the memory limit {limit}"),
            ));
        }
        memory.insert("swap".into(), swap.into());
    }
    if !memory.is_empty() {
        out["memory"] = memory.into();
    }

    if let Some(index) = asked.hugepage_limits.iter().position(|limit| limit.page_size.is_empty()) {
        let field = format!("{field}.hugepage_limits[{index}].page_size");
        return Err(Invalid::new(field, "empty; sizes are written as 2MB or 1GB"));
    }
    let pages = asked.hugepage_limits.iter();
    let pages: Vec<Value> = pages.map(|l| json!({"pageSize": l.page_size, "limit": l.limit})).collect();
    if !pages.is_empty() {
        out["hugepageLimits"] = pages.into();
    }
    if !asked.unified.is_empty() {
        if !cgroup_v2 {
            let problem = "this host has its limits in cgroup version 1, which does not have these files";
            return Err(Invalid::new(format!("{field}.unified"), problem));
        }
        for key in asked.unified.keys() {
            // A file of the container's cgroup, never a path to another one.
            if key.contains('/') || !key.contains('.') || key.starts_with("cgroup.") {
                return Err(Invalid::new(format!("{field}.unified"), format!("{key:?} is no controller's file")));
            }
        }
        out["unified"] = json!(asked.unified);
    }
    Ok(out)
}

/// The limits in force once `asked` is applied to those `now`: what it leaves out stays.
pub(crate) fn merged(now: &LinuxContainerResources, asked: &LinuxContainerResources) -> LinuxContainerResources {
    let number = |now: i64, asked: i64| if asked == 0 { now } else { asked };
    let text = |now: &String, asked: &String| if asked.is_empty() { now.clone() } else { asked.clone() };
    let limit = number(now.memory_limit_in_bytes, asked.memory_limit_in_bytes);
    let swap = match (now.memory_swap_limit_in_bytes, asked.memory_swap_limit_in_bytes) {
        // It counts both together: with more or less memory there is as much swap as before.
        (with_swap @ 1.., 0) if now.memory_limit_in_bytes > 0 => {
            with_swap.saturating_sub(now.memory_limit_in_bytes).saturating_add(limit)
        }
        (now, asked) => number(now, asked),
    };
    let mut hugepage_limits = now.hugepage_limits.clone();
    for HugepageLimit { page_size, limit } in &asked.hugepage_limits {
        match hugepage_limits.iter_mut().find(|known| known.page_size == *page_size) {
            Some(known) => known.limit = *limit,
            None => hugepage_limits.push(HugepageLimit { page_size: page_size.clone(), limit: *limit }),
        }
    }
    let mut unified = now.unified.clone();
    unified.extend(asked.unified.clone());
    LinuxContainerResources {
        cpu_period: number(now.cpu_period, asked.cpu_period),
        cpu_quota: number(now.cpu_quota, asked.cpu_quota),
        cpu_shares: number(now.cpu_shares, asked.cpu_shares),
        memory_limit_in_bytes: limit,
        oom_score_adj: number(now.oom_score_adj, asked.oom_score_adj),
        cpuset_cpus: text(&now.cpuset_cpus, &asked.cpuset_cpus),
        cpuset_mems: text(&now.cpuset_mems, &asked.cpuset_mems),
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes: swap,
    }
}

/// A cpuset list: digits, commas and dashes, short, and no number beyond what a kernel can have. Source: CVE-2018-20699.
fn check_list(list: &str) -> Result<(), String> {
    const CPUS_MAX: u32 = 8192; // CONFIG_NR_CPUS's largest on any architecture
    if list.len() > 4096 {
        return Err(format!("{} bytes is no list of CPUs or nodes", list.len()));
    }
    for range in list.split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        match (from.trim().parse::<u32>(), to.trim().parse::<u32>()) {
            (Ok(from), Ok(to)) if from <= to && to < CPUS_MAX => {}
            _ => return Err(format!("{range:?} is no number or range below {CPUS_MAX}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_keeps_what_it_leaves_out() {
        let now = LinuxContainerResources {
            cpu_quota: 10_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 64,
            memory_swap_limit_in_bytes: 80,
            cpuset_cpus: "0".into(),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 1 }],
            unified: [("memory.high".to_owned(), "1".to_owned()), ("pids.max".to_owned(), "5".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(merged(&now, &Default::default()), now);
        let asked = LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: 128,
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            unified: [("pids.max".to_owned(), "max".to_owned())].into(),
            ..Default::default()
        };
        let expected = LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: 128,
            memory_swap_limit_in_bytes: 144,
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            unified: [("memory.high".to_owned(), "1".to_owned()), ("pids.max".to_owned(), "max".to_owned())].into(),
            ..now.clone()
        };
        assert_eq!(merged(&now, &asked), expected);
        let unlimited = LinuxContainerResources { memory_swap_limit_in_bytes: -1, ..now };
        assert_eq!(merged(&unlimited, &asked).memory_swap_limit_in_bytes, -1);
    }

    #[test]
    fn cpu_lists() {
        for good in ["0", "0-3", "0,2-3", "0-8191"] {
            assert_eq!(check_list(good), Ok(()), "{good}");
        }
        for bad in ["", "a", "3-1", "0-4294967295", "1,,2", "8192"] {
            assert!(check_list(bad).is_err(), "{bad}");
        }
    }
}
