//! `config.json`: read, and refused where it asks for what is not done.

use std::ffi::CString;
use std::path::Path;

use berth_api::shim::ENV_ANNOTATION;
use oci_spec::runtime::{Hooks, Spec};

use super::Error;
use super::process;

/// Reads the bundle's spec.
///
/// # Errors
/// The file that cannot be read or parsed; the first field that is not supported.
pub(super) fn read(bundle: &Path) -> Result<Spec, Error> {
    let path = bundle.join("config.json");
    let bytes = std::fs::read(&path).map_err(|source| Error::ReadSpec { path: path.clone(), source })?;
    let spec: Spec = serde_json::from_slice(&bytes).map_err(|source| Error::ParseSpec { path, source })?;
    refuse(&spec)?;
    Ok(spec)
}

/// A field that is ignored would be a promise not kept.
pub(super) fn refuse(spec: &Spec) -> Result<(), Error> {
    let linux = spec.linux().as_ref();
    let set = [
        ("hooks", spec.hooks().as_ref().is_some_and(|hooks| *hooks != Hooks::default())),
        ("windows", spec.windows().is_some()),
        ("solaris", spec.solaris().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
        ("linux.intelRdt", linux.is_some_and(|l| l.intel_rdt().is_some())),
        ("linux.memoryPolicy", linux.is_some_and(|l| l.memory_policy().is_some())),
        ("linux.personality", linux.is_some_and(|l| l.personality().is_some())),
        ("linux.timeOffsets", linux.is_some_and(|l| l.time_offsets().as_ref().is_some_and(|m| !m.is_empty()))),
        ("linux.netDevices", linux.is_some_and(|l| l.net_devices().as_ref().is_some_and(|m| !m.is_empty()))),
    ];
    match set.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(Error::refused(field, "not supported yet")),
        None => Ok(()),
    }
}

/// The init's environment: the annotation's bytes where a value is not UTF-8, else `process.env`.
///
/// # Errors
/// An annotation that is not base64 of NUL-terminated strings; a value with a NUL byte.
pub(super) fn environment(spec: &Spec, process: &oci_spec::runtime::Process) -> Result<Vec<CString>, Error> {
    let annotation = spec.annotations().as_ref().and_then(|all| all.get(ENV_ANNOTATION));
    let Some(annotation) = annotation else {
        return process::environment(process);
    };
    let refuse = || Error::refused(format!("annotations[{ENV_ANNOTATION}]"), "is not base64 of NUL-terminated strings");
    let bytes = base64(annotation).ok_or_else(refuse)?;
    let mut rest = bytes.as_slice();
    let mut environment = Vec::new();
    while !rest.is_empty() {
        let entry = std::ffi::CStr::from_bytes_until_nul(rest).map_err(|_| refuse())?;
        rest = &rest[entry.to_bytes_with_nul().len()..];
        environment.push(entry.to_owned());
    }
    Ok(environment)
}

/// Standard base64 (RFC 4648, section 4) with its padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0);
    for letter in &text[..text.len() - padding] {
        bits = bits << 6 | u32::from(value(*letter)?);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    // What is left over of the last letter must be zero: one encoding for each value.
    (bits == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(base64("/wA="), Some(vec![0xff, 0]));
        for bad in ["Z", "Zg=", "Zh==", "Z===", "Zm9v\n", "Zg==Zg=="] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn bytes_of_the_annotation_replace_the_environment() {
        let json = format!(r#"{{"ociVersion":"1.3.0","annotations":{{"{ENV_ANNOTATION}":"QT3/AEI9AA=="}}}}"#);
        let spec: Spec = serde_json::from_str(&json).expect("spec");
        let environment = environment(&spec, &oci_spec::runtime::Process::default()).expect("environment");
        assert_eq!(environment, [c"A=\xff".to_owned(), c"B=".to_owned()]);
    }

    #[test]
    fn fields_that_are_not_done_are_refused_by_name() {
        let json = r#"{"ociVersion":"1.3.0","linux":{"personality":{"domain":"LINUX32"}}}"#;
        let spec: Spec = serde_json::from_str(json).expect("spec");
        assert_eq!(refuse(&spec).expect_err("refused").to_string(), "linux.personality: not supported yet");
    }
}
