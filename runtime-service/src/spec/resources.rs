//! Limits of a container, in the OCI spec's words.

use serde_json::{Map, Value, json};

use super::{Input, Invalid, devices};

/// `linux.resources`. Zero means "not set" for every CRI number.
pub(super) fn build(input: &Input<'_>, privileged: bool) -> Result<Value, Invalid> {
    const FIELD: &str = "config.linux.resources";
    let mut out = json!({ "devices": devices::rules(input.devices, privileged) });
    let Some(asked) = input.config.linux.as_ref().and_then(|l| l.resources.as_ref()) else {
        return Ok(out);
    };
    let not_negative = |name: &str, value: i64, minus_one: bool| match value {
        v if v >= 0 || (minus_one && v == -1) => Ok(v),
        v => Err(Invalid::new(format!("{FIELD}.{name}"), format!("{v} is negative"))),
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
            check_list(list).map_err(|problem| Invalid::new(format!("{FIELD}.{name}"), problem))?;
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
                format!("{FIELD}.memory_swap_limit_in_bytes"),
                format!("{swap} counts memory and swap together and is below the memory limit {limit}"),
            ));
        }
        memory.insert("swap".into(), swap.into());
    }
    if !memory.is_empty() {
        out["memory"] = memory.into();
    }

    let pages = asked.hugepage_limits.iter().filter(|l| !l.page_size.is_empty());
    let pages: Vec<Value> = pages.map(|l| json!({"pageSize": l.page_size, "limit": l.limit})).collect();
    if !pages.is_empty() {
        out["hugepageLimits"] = pages.into();
    }
    if !asked.unified.is_empty() {
        if !input.cgroup_v2 {
            let problem = "this host has its limits in cgroup version 1, which does not have these files";
            return Err(Invalid::new(format!("{FIELD}.unified"), problem));
        }
        for key in asked.unified.keys() {
            // A file of the container's cgroup, never a path to another one.
            if key.contains('/') || !key.contains('.') || key.starts_with("cgroup.") {
                return Err(Invalid::new(format!("{FIELD}.unified"), format!("{key:?} is no controller's file")));
            }
        }
        out["unified"] = json!(asked.unified);
    }
    Ok(out)
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
    use super::check_list;

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
