//! Where the cluster's network configuration is found. What it says is `berth_api::cni::config`'s to read.

use std::fs;
use std::path::Path;

use berth_api::cni::config::NetworkList;

use super::Error;

/// Largest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The first configuration of a directory by file name: a `.conflist`, or a `.conf` or `.json` with one plugin.
///
/// # Errors
/// It cannot be read or parsed.
pub(super) fn first_in(dir: &Path) -> Result<Option<NetworkList>, Error> {
    let unreadable = |path: &Path, e: std::io::Error| Error::Broken(format!("{}: {e}", path.display()));
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(dir, e)),
        Ok(entries) => entries,
    };
    let is_conf = |path: &Path| path.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json");
    let Some(path) = entries.flatten().map(|e| e.path()).filter(|p| is_conf(p)).min() else { return Ok(None) };
    let meta = fs::metadata(&path).map_err(|e| unreadable(&path, e))?;
    if meta.len() > FILE_MAX {
        return Err(Error::Broken(format!("{}: {} bytes are more than {FILE_MAX}", path.display(), meta.len())));
    }
    let text = fs::read(&path).map_err(|e| unreadable(&path, e))?;
    let file = path.to_string_lossy();
    let list = match path.extension().is_some_and(|e| e == "conflist") {
        true => NetworkList::parse(&file, &text),
        false => NetworkList::parse_single(&file, &text),
    };
    list.map(Some).map_err(|e| Error::Broken(e.to_string()))
}
