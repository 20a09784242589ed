//! Landlock: which files, ports and processes can be reached at all, whatever the system call.

use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, PathFd, RestrictionStatus, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};

use super::Role;

/// The newest version whose rights are denied; an older kernel denies those it knows.
const ABI_WANTED: ABI = ABI::V7;

pub(super) fn restrict(role: &Role) -> Result<String, String> {
    let directories = match role {
        Role::Job(directories) => directories.as_slice(),
        Role::Worker | Role::Gateway | Role::Compiler => &[],
    };
    let status = apply(directories).map_err(|error| error.to_string())?;
    let level = match status.ruleset {
        RulesetStatus::NotEnforced => {
            return Err("this kernel does not offer it, or it is not in its list of LSMs".into());
        }
        RulesetStatus::PartiallyEnforced => " (the rights this kernel knows)",
        RulesetStatus::FullyEnforced => "",
    };
    Ok(match directories.len() {
        0 => format!("no file, no port, no other process{level}"),
        n => format!("{n} directories, no port, no other process{level}"),
    })
}

fn apply(directories: &[(PathBuf, bool)]) -> Result<RestrictionStatus, landlock::RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_WANTED))?
        .handle_access(AccessNet::from_all(ABI_WANTED))?
        .scope(Scope::from_all(ABI_WANTED))?
        .create()?;
    for (path, read_only) in directories {
        let access = if *read_only {
            AccessFs::from_read(ABI_WANTED) & !AccessFs::Execute
        } else {
            // No device, no socket and no pipe: files and directories are all a job may make.
            AccessFs::from_all(ABI_WANTED)
                & !(AccessFs::Execute
                    | AccessFs::MakeChar
                    | AccessFs::MakeBlock
                    | AccessFs::MakeSock
                    | AccessFs::MakeFifo
                    | AccessFs::IoctlDev)
        };
        // A directory that vanished is missed by who opens it, with a better message.
        if let Ok(directory) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(directory, access))?;
        }
    }
    rules.restrict_self()
}
