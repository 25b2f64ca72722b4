//! As whom the command runs.

use anyhow::{Context, bail};
use nix::unistd::{Gid, Group, Uid, User};

/// `UID:GID` for the launcher: `--user`, else who called sudo, else `None` for the caller itself.
pub(super) fn identity(user: Option<&str>) -> anyhow::Result<Option<String>> {
    if let Some(user) = user {
        return named(user).map(Some);
    }
    let id = |name| std::env::var(name).ok().and_then(|id| id.parse::<u32>().ok());
    Ok(match (id("SUDO_UID"), id("SUDO_GID")) {
        (Some(uid), Some(gid)) if uid != 0 => Some(format!("{uid}:{gid}")),
        _ => None,
    })
}

/// `USER`, `USER:GROUP`, by name or number.
fn named(text: &str) -> anyhow::Result<String> {
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(user, group)| (user, Some(group)));
    let known = match user.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid))?,
        Err(_not_a_number) => User::from_name(user)?,
    };
    let uid = match (&known, user.parse()) {
        (Some(known), _) => known.uid,
        (None, Ok(uid)) => Uid::from_raw(uid),
        (None, Err(_)) => bail!("--user: there is no user `{user}`; give a name or a number"),
    };
    let gid = match group {
        Some(group) => match group.parse() {
            Ok(gid) => Gid::from_raw(gid),
            Err(_) => {
                Group::from_name(group)?
                    .with_context(|| format!("--user: there is no group `{group}`"))?
                    .gid
            }
        },
        None => {
            known
                .with_context(|| format!("--user: `{user}` has no entry: give a group too, as {user}:GROUP"))?
                .gid
        }
    };
    Ok(format!("{uid}:{gid}"))
}

#[cfg(test)]
mod tests {
    use super::named;

    #[test]
    fn users_are_found_by_name_and_number_and_never_guessed() {
        assert_eq!(named("root").unwrap(), "0:0");
        assert_eq!(named("0").unwrap(), "0:0");
        assert_eq!(named("4242:4343").unwrap(), "4242:4343");
        assert_eq!(named("root:root").unwrap(), "0:0");
        assert!(
            named("no-such-user")
                .unwrap_err()
                .to_string()
                .contains("no-such-user")
        );
        assert!(named("4242").unwrap_err().to_string().contains("4242:GROUP"));
    }
}
