//! The process of a container: arguments, environment, directory, identity.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_api::cri;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Input, Invalid, caps};

/// What the image's configuration says about running it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageDefaults {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) working_dir: String,
    pub(crate) user: String,
    pub(crate) stop_signal: String,
}

/// Used when neither image nor request sets PATH. Source: the custom of Docker and containerd.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The `process` object, and the environment as the annotation carries it when it is not all UTF-8.
pub(super) fn build(
    input: &Input<'_>,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<(Value, Option<String>), Invalid> {
    let args = arguments(input.config, input.image)?;
    let env = environment(input)?;
    let text: Option<Vec<String>> = env.iter().map(|e| String::from_utf8(e.clone()).ok()).collect();
    let annotation = text.is_none().then(|| {
        let block: Vec<u8> = env.iter().flat_map(|e| e.iter().copied().chain([0])).collect();
        STANDARD.encode(block)
    });
    let resources = input.config.linux.as_ref().and_then(|l| l.resources.as_ref());
    let mut process = json!({
        "terminal": input.config.tty,
        "user": { "uid": input.user.uid, "gid": input.user.gid, "additionalGids": input.user.groups },
        "args": args,
        "env": text.unwrap_or_default(),
        "cwd": working_dir(input.config, input.image)?,
        "capabilities": caps::build(security, input.held)?,
        "noNewPrivileges": security.no_new_privs,
    });
    if let Some(profile) = input.apparmor_profile {
        process["apparmorProfile"] = profile.into();
    }
    if let Some(label) = input.labels.and_then(|labels| labels.process.as_deref()) {
        process["selinuxLabel"] = label.into();
    }
    // Without one it is zero, and never what the daemon was given to outlive its containers.
    let adj = resources.map_or(0, |r| r.oom_score_adj);
    if !(-1000..=1000).contains(&adj) {
        let problem = format!("{adj} is not within -1000..1000");
        return Err(Invalid::new("config.linux.resources.oom_score_adj", problem));
    }
    process["oomScoreAdj"] = adj.into();
    Ok((process, annotation))
}

/// Command and args against Entrypoint and Cmd, as the kubelet documents it: a command replaces both of the image's, args
/// alone replace Cmd.
fn arguments(config: &cri::ContainerConfig, image: &ImageDefaults) -> Result<Vec<String>, Invalid> {
    let mut args = if config.command.is_empty() { image.entrypoint.clone() } else { config.command.clone() };
    if !config.args.is_empty() {
        args.extend(config.args.iter().cloned());
    } else if config.command.is_empty() {
        args.extend(image.cmd.iter().cloned());
    }
    match args.first() {
        None => Err(Invalid::new("config.command", "empty, and the image has neither Entrypoint nor Cmd")),
        Some(first) if first.is_empty() => Err(Invalid::new("config.command", "the program's name is empty")),
        Some(_) if args.iter().any(|a| a.contains('\0')) => Err(Invalid::new("config.args", "a NUL byte")),
        Some(_) => Ok(args),
    }
}

fn working_dir(config: &cri::ContainerConfig, image: &ImageDefaults) -> Result<String, Invalid> {
    let dir = [&config.working_dir, &image.working_dir].into_iter().find(|d| !d.is_empty());
    match dir.map(String::as_str).unwrap_or("/") {
        absolute if absolute.starts_with('/') => Ok(absolute.to_owned()),
        relative => Err(Invalid::new("config.working_dir", format!("{relative:?} is not absolute"))),
    }
}

/// The image's variables, then HOSTNAME, then the request's; a later one of the same name replaces an earlier one.
fn environment(input: &Input<'_>) -> Result<Vec<Vec<u8>>, Invalid> {
    let mut env: Vec<Vec<u8>> = Vec::new();
    // By name: there may be thousands.
    let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut set = |entry: Vec<u8>| {
        let name = entry.split(|b| *b == b'=').next().unwrap_or_default().to_vec();
        match places.entry(name) {
            Entry::Occupied(place) => env[*place.get()] = entry,
            Entry::Vacant(place) => {
                place.insert(env.len());
                env.push(entry);
            }
        }
    };
    set(PATH.into());
    if !input.parts.hostname.is_empty() {
        set(format!("HOSTNAME={}", input.parts.hostname).into_bytes());
    }
    if input.config.tty {
        set(b"TERM=xterm".to_vec());
    }
    set(format!("HOME={}", input.user.home).into_bytes());
    for entry in &input.image.env {
        // Without `=`, or with an empty name, it is no variable; the image is not the user's to mend.
        if entry.find('=').is_some_and(|at| at > 0) && !entry.contains('\0') {
            set(entry.clone().into_bytes());
        }
    }
    for (index, pair) in input.config.envs.iter().enumerate() {
        let field = |name: &str| format!("config.envs[{index}].{name}");
        if pair.key.is_empty() || pair.key.contains(['=', '\0']) {
            return Err(Invalid::new(field("key"), format!("{:?} is no name of a variable", pair.key)));
        }
        if pair.value.contains(&0) {
            return Err(Invalid::new(field("value"), "a NUL byte"));
        }
        set([pair.key.as_bytes(), b"=", &pair.value].concat());
    }
    Ok(env)
}

/// The signal that asks the container to end: the request's, the image's, or SIGTERM.
///
/// An image's signal that does not exist counts as SIGTERM: the image is not the user's to mend.
pub(crate) fn stop_signal(config: &cri::ContainerConfig, image: &ImageDefaults) -> i32 {
    match config.stop_signal() {
        cri::Signal::RuntimeDefault => image_signal(&image.stop_signal).unwrap_or(Signal::SIGTERM as i32),
        asked => cri_signal(asked),
    }
}

/// `TERM`, `SIGTERM`, `15`, `RTMIN+3`, `SIGRTMAX-2`.
fn image_signal(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    let bare = text.strip_prefix("SIG").unwrap_or(&text);
    if let Ok(number) = bare.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let number = if let Some(rest) = bare.strip_prefix("RTMIN") {
        RTMIN.checked_add(offset(rest)?)?
    } else if let Some(rest) = bare.strip_prefix("RTMAX") {
        RTMAX.checked_add(offset(rest)?)?
    } else {
        return format!("SIG{bare}").parse::<Signal>().ok().map(|s| s as i32);
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// First and last real-time signal as programs see them: glibc and musl keep 32 to 34 for themselves.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

fn cri_signal(signal: cri::Signal) -> i32 {
    let name = signal.as_str_name();
    let name = name.strip_prefix("SIGNAL_").unwrap_or(name);
    let plain = match name {
        "SIGCLD" => "SIGCHLD",
        "SIGPOLL" => "SIGIO",
        "SIGIOT" => "SIGABRT",
        other => other,
    };
    if let Some(rest) = plain.strip_prefix("SIGRTMINPLUS") {
        RTMIN + rest.parse().unwrap_or(0)
    } else if let Some(rest) = plain.strip_prefix("SIGRTMAXMINUS") {
        RTMAX - rest.parse().unwrap_or(0)
    } else {
        match plain {
            "SIGRTMIN" => RTMIN,
            "SIGRTMAX" => RTMAX,
            known => known.parse::<Signal>().unwrap_or(Signal::SIGTERM) as i32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_and_args_against_entrypoint_and_cmd() {
        let list = |l: &[&str]| l.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let image = ImageDefaults { entrypoint: list(&["e"]), cmd: list(&["c"]), ..Default::default() };
        for (command, args, result) in [
            (&[][..], &[][..], &["e", "c"][..]),
            (&[], &["a"], &["e", "a"]),
            (&["x"], &[], &["x"]),
            (&["x"], &["a"], &["x", "a"]),
        ] {
            let config = cri::ContainerConfig { command: list(command), args: list(args), ..Default::default() };
            assert_eq!(arguments(&config, &image).expect("args"), list(result));
        }
        let error = arguments(&Default::default(), &Default::default()).expect_err("nothing to run");
        assert!(error.to_string().contains("Entrypoint"), "{error}");
    }

    #[test]
    fn every_cri_signal_has_its_number() {
        for value in 1..=65 {
            let signal = cri::Signal::try_from(value).expect("in the enum");
            let number = cri_signal(signal);
            assert!((1..=64).contains(&number), "{signal:?} {number}");
            assert!(number != 15 || signal == cri::Signal::Sigterm, "{signal:?} fell through to SIGTERM");
        }
    }

    #[test]
    fn the_image_may_name_its_signal_in_many_ways() {
        for (text, number) in [
            ("SIGQUIT", Some(3)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN+99", None),
            ("RTMIN+2147483647", None),
            ("RTMAX-2147483648", None),
            ("KILL; rm", None),
            ("0", None),
            ("", None),
        ] {
            assert_eq!(image_signal(text), number, "{text}");
        }
    }
}
