// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//! `make install` into a folder, and what it puts there.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use xdp_proxy::config::{HostPorts, parse};

const PROGRAM: &str = env!("CARGO_BIN_EXE_xdp-proxy");

/// A copy of what `make install` needs, with this binary as the one that was
/// built, and a root to install to. Both vanish at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let name = format!("xdp-proxy-install-{}-{name}", std::process::id());
        let place = Place(std::env::temp_dir().join(name));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for file in ["Makefile", "dist"] {
            copy(&root.join(file), &place.0.join("source").join(file));
        }
        copy(
            Path::new(PROGRAM),
            &place.0.join("source/build").join("xdp-proxy"),
        );
        place
    }

    fn make(&self, target: &str, settings: &[&str]) -> Output {
        let root = format!("DESTDIR={}", self.0.join("root").display());
        Command::new("make")
            .current_dir(self.0.join("source"))
            .args([target, &root])
            .args(settings)
            .output()
            .unwrap()
    }

    fn file(&self, inside: &str) -> PathBuf {
        self.0.join("root").join(inside)
    }

    /// Everything that is installed, by its path, in order.
    fn files(&self) -> Vec<String> {
        let find = printed("find", [&self.file("")], &["-type", "f"]);
        let root = self.file("").display().to_string();
        let mut files: Vec<String> = find
            .lines()
            .map(|file| file.strip_prefix(&root).unwrap().to_owned())
            .collect();
        files.sort();
        files
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let status = Command::new("cp").arg("-r").args([from, to]).status();
    assert!(status.unwrap().success());
}

/// What the command, which must succeed in silence on stderr, printed.
fn printed<T: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    first: impl IntoIterator<Item = T>,
    arguments: &[&str],
) -> String {
    let output = Command::new(&program)
        .args(first)
        .args(arguments)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.is_empty(),
        "{:?}: {stderr}",
        program.as_ref()
    );
    String::from_utf8(output.stdout).unwrap()
}

fn is_there(program: &str) -> bool {
    let look = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output();
    look.unwrap().status.success()
}

#[test]
fn install_puts_everything_under_the_prefix_and_uninstall_removes_it() {
    let place = Place::new("all");
    let settings = ["PREFIX=/opt/lb"];
    let output = place.make("install", &settings);
    assert!(output.status.success(), "{output:?}");
    let files = [
        "opt/lb/bin/xdp-proxy",
        "opt/lb/lib/systemd/system/xdp-proxy@.service",
        "opt/lb/share/bash-completion/completions/xdp-proxy",
        "opt/lb/share/doc/xdp-proxy/xdp-proxy.toml",
        "opt/lb/share/fish/vendor_completions.d/xdp-proxy.fish",
        "opt/lb/share/man/man8/xdp-proxy.8",
        "opt/lb/share/zsh/site-functions/_xdp-proxy",
    ];
    assert_eq!(place.files(), files);
    let program = place.file("opt/lb/bin/xdp-proxy");
    assert_eq!(
        printed(program, ["--version"], &[]),
        format!("xdp-proxy {}\n", env!("CARGO_PKG_VERSION"))
    );

    assert!(place.make("uninstall", &settings).status.success());
    assert_eq!(place.files(), [""; 0]);
    assert!(!place.file("opt/lb/share/doc/xdp-proxy").exists());
}

/// An exposure from 0 to 10; what is left is the network, which it is for.
const EXPOSURE_MAX: f32 = 2.0;

#[test]
fn systemd_takes_the_unit_and_finds_it_hardened() {
    if !is_there("systemd-analyze") {
        eprintln!("SKIPPED the unit by systemd-analyze: it is not there");
        return;
    }
    let place = Place::new("unit");
    let prefix = place.file("opt");
    let prefix = format!("PREFIX={}", prefix.display());
    let output = place.make("install", &[&prefix, "DESTDIR="]);
    assert!(output.status.success(), "{output:?}");
    let folder = place.file("opt/lib/systemd/system");
    let unit = folder.join("xdp-proxy@eth0.service");
    std::os::unix::fs::symlink("xdp-proxy@.service", &unit).unwrap();
    let text = fs::read_to_string(&unit).unwrap();
    assert!(!text.contains("@PROGRAM@"), "{text}");
    for key in ["ExecStart", "ExecReload"] {
        let path = format!("\n{key}={}/bin/xdp-proxy ", place.file("opt").display());
        assert!(text.contains(&path), "{text}");
    }
    // It has words for whatever it does not know.
    let verify = ["verify", "--man=no"].map(OsStr::new);
    let words = printed(
        "systemd-analyze",
        verify.into_iter().chain([unit.as_os_str()]),
        &[],
    );
    assert_eq!(words, "");
    let security = ["security", "--offline=true", "--no-pager"].map(OsStr::new);
    let security = printed(
        "systemd-analyze",
        security.into_iter().chain([unit.as_os_str()]),
        &[],
    );
    let overall = security.lines().find_map(|line| {
        let level = line.split_once(".service: ")?.1;
        level.split(' ').next()?.parse::<f32>().ok()
    });
    assert!(
        overall.is_some_and(|level| level <= EXPOSURE_MAX),
        "{security}"
    );
}

#[test]
fn install_says_what_to_do_where_nothing_was_built() {
    let place = Place::new("bare");
    fs::remove_dir_all(place.0.join("source/build")).unwrap();
    let output = place.make("install", &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(stderr.contains("type 'make build' first"), "{stderr}");
    assert!(!place.file("").exists());
}

#[test]
fn completions_are_scripts_that_their_shells_take() {
    let folder = Place::new("completions");
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef"), ("fish", "-c")] {
        let script = printed(PROGRAM, ["completions", shell], &[]);
        for command in ["run", "check", "status", "reload", "stop", "--backend"] {
            let name = command.trim_start_matches('-');
            assert!(script.contains(name), "{shell}: no {command}");
        }
        assert!(script.contains(word), "{shell}: {script}");
        if !is_there(shell) {
            eprintln!("SKIPPED the syntax of completions for {shell}: it is not there");
            continue;
        }
        let file = folder.0.join(shell);
        fs::write(&file, script).unwrap();
        assert_eq!(printed(shell, ["-n".as_ref(), file.as_os_str()], &[]), "");
    }
}

#[test]
fn bash_completes_commands_flags_and_modes() {
    // Bash hands the words to the function that `complete -F` named.
    let complete = |line: &str| {
        let words: Vec<String> = line.split(' ').map(|word| format!("'{word}'")).collect();
        let [.., previous, last] = &words[..] else {
            panic!("{line}")
        };
        let script = format!(
            "source <({PROGRAM} completions bash)
             COMP_WORDS=({})
             COMP_CWORD={}
             $(complete -p xdp-proxy | grep -o '_xdp[^ ]*') xdp-proxy {last} {previous}
             echo \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1,
        );
        printed("bash", ["-c", &script], &[])
    };
    assert_eq!(complete("xdp-proxy st"), "status stop\n");
    assert_eq!(
        complete("xdp-proxy run --mode "),
        "auto generic native offload\n"
    );
    assert_eq!(complete("xdp-proxy status --j"), "--json\n");
}

#[test]
fn the_manual_page_has_every_command_flag_and_section() {
    let page = printed(PROGRAM, ["manual"], &[]);
    assert!(!page.contains("@EXAMPLE@"));
    if !is_there("man") {
        eprintln!("SKIPPED the manual page by man: it is not there");
        return;
    }
    let place = Place::new("manual");
    let file = place.0.join("xdp-proxy.8");
    fs::write(&file, page).unwrap();
    // Each warning is a fault in the page, and on stderr.
    let mut man = Command::new("man");
    man.args(["--warnings", "-E", "UTF-8", "-l"]).arg(&file);
    let output = man
        .env("MANWIDTH", "200")
        .env("MAN_KEEP_FORMATTING", "")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    let text = String::from_utf8(output.stdout).unwrap();

    let help = printed(PROGRAM, ["--help"], &[]);
    let commands = help.split("Commands:\n").nth(1).unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let names = commands.map(|line| line.split_whitespace().next().unwrap());
    let names: Vec<&str> = names.filter(|name| *name != "help").collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        assert!(text.contains(&format!("   xdp-proxy {name}\n")), "{name}");
        let help = printed(PROGRAM, [name, "--help"], &[]);
        let flags = help.split(|c: char| c.is_whitespace() || c == ',');
        for flag in flags.filter(|word| word.starts_with("--") && *word != "--help") {
            let flag = flag.trim_end_matches('.');
            assert!(text.contains(flag), "{name} {flag}");
        }
    }
    for section in [
        "NAME",
        "SYNOPSIS",
        "COMMANDS",
        "CONFIGURATION FILE",
        "SIGNALS",
        "EXIT STATUS",
        "CAPABILITIES",
        "ENVIRONMENT",
        "FILES",
        "EXAMPLES",
        "SEE ALSO",
    ] {
        assert!(text.contains(&format!("\n{section}\n")), "{section}");
    }
}

#[test]
fn the_example_is_a_valid_configuration() {
    let host = HostPorts {
        local: 32768..=60999,
        reserved: Vec::new(),
    };
    let text = include_str!("../dist/xdp-proxy.toml");
    let config = parse("dist/xdp-proxy.toml", text, &host).unwrap();
    assert_eq!(config.services.len(), 1);
}
