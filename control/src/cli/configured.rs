//! The daemon's configuration. Only the daemon's own program reads it, so that it means the same to all; it is asked.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use host::Plan;
use host::daemon::Relay;
use host::doctor::Configured;

use crate::api::{Configuration, ConfiguredRelay, DeviceSpec};

const PROGRAM: &str = "virtio-forwarder";
/// `EX_CONFIG` of `sysexits.h`: the configuration cannot be used.
const UNUSABLE: i32 = 78;
/// What goes before the mistakes, a line each.
const MISTAKES: &str = "cannot be used:";

/// Asks the program beside this one, or the one that the shell would find.
pub(super) fn ask() -> Configured {
    let beside = env::current_exe().ok().and_then(|this| Some(this.parent()?.join(PROGRAM)));
    let program = beside.filter(|path| path.exists()).map_or_else(|| PROGRAM.into(), PathBuf::into_os_string);
    let output = Command::new::<OsString>(program).arg("config").stdin(Stdio::null()).output();
    match output {
        Ok(output) => understand(&output),
        Err(error) => {
            Configured::Unknown(format!("there is no {PROGRAM} beside this program or in PATH ({error})"))
        }
    }
}

fn understand(output: &Output) -> Configured {
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => match serde_json::from_slice(&output.stdout) {
            Ok(configuration) => Configured::Plan(plan(configuration)),
            Err(error) => Configured::Unknown(format!("{PROGRAM} config is not understood: {error}")),
        },
        Some(UNUSABLE) => {
            let mistakes = said.split_once(MISTAKES).map_or(&*said, |(_, mistakes)| mistakes);
            Configured::Wrong(mistakes.trim().to_owned())
        }
        _ => {
            let last = said.lines().last().unwrap_or_default();
            Configured::Unknown(format!("{PROGRAM} config ended with {}: {last}", output.status))
        }
    }
}

fn plan(configuration: Configuration) -> Plan {
    let relay = |relay: ConfiguredRelay| Relay {
        id: relay.id,
        function: match relay.device {
            Some(DeviceSpec::Vf(address)) => address.to_string().parse().ok(),
            _ => None,
        },
        socket: None,
        cpus: [relay.cpus.vf_to_vm, relay.cpus.vm_to_vf].into_iter().flatten().collect(),
    };
    Plan {
        cpus: configuration.cpus,
        directory: configuration.vhost_path,
        relays: configuration.relays.into_iter().map(relay).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn output(code: i32, stdout: &str, stderr: &str) -> Output {
        Output { status: ExitStatus::from_raw(code << 8), stdout: stdout.into(), stderr: stderr.into() }
    }

    #[test]
    fn what_the_program_says_is_understood() {
        let json = r#"{"cpus": [1, 2], "vhost_path": "/srv", "relays": [
            {"id": 0, "device": "loopback", "cpus": {"vf_to_vm": 1, "vm_to_vf": 1}},
            {"id": 1, "device": "0000:05:08.1", "cpus": {"vf_to_vm": 1, "vm_to_vf": 2}}]}"#;
        let Configured::Plan(plan) = understand(&output(0, json, "a notice")) else { panic!("no plan") };
        assert_eq!((plan.cpus.as_slice(), plan.directory.to_str()), (&[1, 2][..], Some("/srv")));
        assert_eq!((plan.relays[0].function, plan.relays[0].cpus.as_slice()), (None, &[1, 1][..]));
        assert_eq!(plan.relays[1].function.unwrap().to_string(), "0000:05:08.1");
        let stderr = "virtio-forwarder: warning: x\nvirtio-forwarder: the configuration cannot be used:\n  one\n  two\n";
        assert_eq!(understand(&output(78, "", stderr)), Configured::Wrong("one\n  two".to_owned()));
        for (code, stdout, stderr, words) in [
            (0, "{", "", "not understood"),
            (2, "", "error: unrecognized subcommand", "exit status: 2: error: unrec"),
        ] {
            let Configured::Unknown(why) = understand(&output(code, stdout, stderr)) else {
                panic!("{stdout}")
            };
            assert!(why.contains(words), "{why}");
        }
    }
}
