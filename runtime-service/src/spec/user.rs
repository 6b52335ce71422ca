//! Who a container's process is: CRI's user fields and the image's USER, read against the image's passwd and group files.

use berth_api::cri;

use super::Invalid;

/// The resolved identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The primary gid first, then the others, each once. Without the primary among them a process could shed a group
    /// that denies it something (CVE-2022-2995).
    pub(crate) groups: Vec<u32>,
    /// Home directory from passwd; `/` when there is none.
    pub(crate) home: String,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Resolves the user. `passwd` and `group` are the image's files, empty when it has none.
///
/// # Errors
/// `run_as_group` without a user, a name that the image does not know, a number out of range.
pub(crate) fn resolve(
    security: &cri::LinuxContainerSecurityContext,
    image_user: &str,
    passwd: &str,
    group: &str,
) -> Result<User, Invalid> {
    const FIELD: &str = "config.linux.security_context";
    let by_request = security.run_as_user.is_some() || !security.run_as_username.is_empty();
    if security.run_as_group.is_some() && !by_request {
        return Err(Invalid::new(format!("{FIELD}.run_as_group"), "set without run_as_user or run_as_username"));
    }
    let (user, user_field, image_group) = if let Some(uid) = security.run_as_user {
        (uid.value.to_string(), format!("{FIELD}.run_as_user"), "")
    } else if !security.run_as_username.is_empty() {
        (security.run_as_username.clone(), format!("{FIELD}.run_as_username"), "")
    } else {
        let (user, group) = image_user.split_once(':').unwrap_or((image_user, ""));
        (user.to_owned(), "the image's USER".to_owned(), group)
    };
    let entry = find_user(passwd, &user);
    let uid = match (&entry, user.as_str()) {
        (Some(entry), _) => entry.uid,
        (None, "") => 0,
        (None, text) if looks_like_number(text) => number(text, &user_field)?,
        (None, name) => return Err(Invalid::new(user_field, format!("the image's /etc/passwd has no user {name:?}"))),
    };
    let gid = match (security.run_as_group, image_group) {
        (Some(gid), _) => number(&gid.value.to_string(), &format!("{FIELD}.run_as_group"))?,
        (None, "") => entry.as_ref().map_or(0, |e| e.gid),
        (None, name) => match find_group(group, name) {
            Some(gid) => gid,
            None if looks_like_number(name) => number(name, "the image's USER")?,
            None => {
                return Err(Invalid::new("the image's USER", format!("the image's /etc/group has no group {name:?}")));
            }
        },
    };
    let mut groups = vec![gid];
    let mut add = |gid: u32| {
        if !groups.contains(&gid) {
            groups.push(gid);
        }
    };
    if security.supplemental_groups_policy() == cri::SupplementalGroupsPolicy::Merge
        && let Some(entry) = &entry
    {
        memberships(group, entry.name).for_each(&mut add);
    }
    for gid in &security.supplemental_groups {
        add(number(&gid.to_string(), &format!("{FIELD}.supplemental_groups"))?);
    }
    let home = entry.map(|e| e.home).filter(|h| !h.is_empty()).unwrap_or("/").to_owned();
    Ok(User { uid, gid, groups, home })
}

fn looks_like_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) || text.starts_with('-')
}

fn number(text: &str, field: &str) -> Result<u32, Invalid> {
    // 2^32 - 1 means "leave it" to the kernel and is no id.
    match text.parse::<u32>() {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Invalid::new(field, format!("{text} is not an id between 0 and 4294967294"))),
    }
}

/// By number first: a user called "1000" does not shadow uid 1000.
fn find_user<'a>(passwd: &'a str, wanted: &str) -> Option<Passwd<'a>> {
    if wanted.is_empty() {
        return users(passwd).find(|u| u.uid == 0);
    }
    match wanted.parse::<u32>() {
        Ok(uid) if looks_like_number(wanted) => users(passwd).find(|u| u.uid == uid),
        _ => users(passwd).find(|u| u.name == wanted),
    }
}

fn users(passwd: &str) -> impl Iterator<Item = Passwd<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        let _password = fields.next()?;
        let uid = id(fields.next()?)?;
        let gid = id(fields.next()?)?;
        let _gecos = fields.next();
        Some(Passwd { name, uid, gid, home: fields.next().unwrap_or("") })
    })
}

/// An image could name 2^32 - 1, which the kernel takes for "leave it": the process would stay what berth is.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn find_group(group: &str, name: &str) -> Option<u32> {
    groups(group).find(|(n, _, _)| *n == name).map(|(_, gid, _)| gid)
}

fn memberships<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> {
    groups(group).filter(move |(_, _, members)| members.split(',').any(|m| m == user)).map(|(_, gid, _)| gid)
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        let _password = fields.next()?;
        let gid = id(fields.next()?)?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:\napp:x:1000:1000::/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww-data:x:33:\nextra:x:50000:app,other\nstaff:x:60000:app\n";

    fn int(value: i64) -> Option<cri::Int64Value> {
        Some(cri::Int64Value { value })
    }

    /// Found by the fuzz target `users`.
    #[test]
    fn an_account_whose_id_is_none_is_no_account() {
        let passwd = "u:x:4294967295:7::/home/u:\ng:x:7:4294967295::/home/g:\nm:x:8:8::/home/m:\n";
        let group = "m:x:4294967295:m\nn:x:9:m\n";
        for user in ["u", "g", "m:m"] {
            let error = resolve(&Default::default(), user, passwd, group).expect_err(user).to_string();
            assert!(error.contains("has no"), "{error}");
        }
        assert_eq!(resolve(&Default::default(), "m", passwd, group).expect("m").groups, [8, 9]);
    }

    #[derive(Default)]
    struct Ask<'a> {
        uid: Option<i64>,
        name: &'a str,
        gid: Option<i64>,
        extra: Vec<i64>,
        strict: bool,
        image: &'a str,
    }

    fn ask(a: Ask<'_>) -> Result<User, String> {
        let security = cri::LinuxContainerSecurityContext {
            run_as_user: a.uid.and_then(int),
            run_as_username: a.name.into(),
            run_as_group: a.gid.and_then(int),
            supplemental_groups: a.extra,
            supplemental_groups_policy: i32::from(a.strict),
            ..Default::default()
        };
        resolve(&security, a.image, PASSWD, GROUP).map_err(|e| e.to_string())
    }

    #[test]
    fn request_beats_image_and_names_are_looked_up() {
        let user = |a| ask(a).map(|u| (u.uid, u.gid, u.groups, u.home)).expect("resolves");
        let s = String::from;
        assert_eq!(user(Ask::default()), (0, 0, vec![0], s("/root")));
        assert_eq!(user(Ask { image: "1002", ..Ask::default() }), (1002, 0, vec![0], s("/")));
        assert_eq!(user(Ask { image: "www-data", ..Ask::default() }), (33, 33, vec![33], s("/var/www")));
        assert_eq!(user(Ask { image: "1003:1004", ..Ask::default() }), (1003, 1004, vec![1004], s("/")));
        assert_eq!(user(Ask { image: "www-data:1004", ..Ask::default() }), (33, 1004, vec![1004], s("/var/www")));
        assert_eq!(
            user(Ask { uid: Some(1000), extra: vec![7], ..Ask::default() }),
            (1000, 1000, vec![1000, 50000, 60000, 7], s("/home/app"))
        );
        assert_eq!(
            user(Ask { name: "app", strict: true, extra: vec![7], ..Ask::default() }),
            (1000, 1000, vec![1000, 7], s("/home/app"))
        );
        assert_eq!(user(Ask { uid: Some(5), gid: Some(6), ..Ask::default() }), (5, 6, vec![6], s("/")));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (a, word) in [
            (Ask { gid: Some(5), ..Ask::default() }, "run_as_group"),
            (Ask { name: "nobody", ..Ask::default() }, "nobody"),
            (Ask { image: "ghost", ..Ask::default() }, "ghost"),
            (Ask { image: "0:ghosts", ..Ask::default() }, "ghosts"),
            (Ask { uid: Some(-1), ..Ask::default() }, "-1"),
            (Ask { uid: Some(4294967295), ..Ask::default() }, "4294967295"),
            (Ask { extra: vec![-5], ..Ask::default() }, "supplemental_groups"),
        ] {
            let error = ask(a).expect_err(word);
            assert!(error.contains(word), "{error}");
        }
    }
}
