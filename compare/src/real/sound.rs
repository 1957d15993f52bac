//! Sound: what delivers it in periods of a few milliseconds, without a device.

use super::{DIRECTORY, PRESENTED, Started, answer, wait_until};
use anyhow::Result;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// In SCHED_FIFO by JACK's own means, as it would ask for.
pub(super) fn jack(frames: u32, fifo: bool) -> Result<Vec<Started>> {
    let server = Started::new("jackd", false, |command| {
        match fifo {
            true => command.args(["-R", "-P", "10"]),
            false => command.arg("-r"),
        };
        command.args([
            "-v",
            "-d",
            "dummy",
            "-r",
            "48000",
            "-p",
            &frames.to_string(),
        ]);
        command.env("LD_PRELOAD", PRESENTED);
    })?;
    wait_until("jackd is not there", || {
        Ok(answer("jack_lsp", &[])?.is_some())
    })?;
    let mut started = vec![server];
    for name in ["first", "second", "third"] {
        started.push(Started::new("jack_thru", false, |command| {
            command.arg(name);
        })?);
        let port = format!("{name}:output_1");
        wait_until("a client is not there", || {
            Ok(answer("jack_lsp", &[&port])?.is_some())
        })?;
    }
    for ends in [
        ["system:capture_1", "first:input_1"],
        ["first:output_1", "second:input_1"],
        ["second:output_1", "third:input_1"],
        ["third:output_1", "system:playback_1"],
    ] {
        wait_until("the clients cannot be connected", || {
            Ok(answer("jack_connect", &ends)?.is_some()
                || answer("jack_lsp", &["-c", ends[1]])?.is_some())
        })?;
    }
    Ok(started)
}

/// PipeWire as its package has it, but without devices, the session bus and real-time priority.
fn configuration(frames: u32) -> String {
    let modules = [
        "protocol-native",
        "profiler",
        "metadata",
        "spa-node-factory",
        "client-node",
        "client-device",
        "access",
        "adapter",
        "link-factory",
        "session-manager",
    ];
    let modules = modules.map(|name| format!("{{ name = libpipewire-module-{name} }}"));
    format!(
        "context.properties = {{ core.daemon = true core.name = pipewire-0 support.dbus = false \
         default.clock.rate = 48000 default.clock.quantum = {frames} default.clock.min-quantum = 16 }}\n\
         context.spa-libs = {{ audio.convert.* = audioconvert/libspa-audioconvert \
         support.* = support/libspa-support }}\n\
         context.modules = [ {} ]\n\
         context.objects = [ {{ factory = adapter args = {{ factory.name = support.null-audio-sink \
         node.name = sink media.class = Audio/Sink audio.position = \"FL,FR\" }} }} ]\n",
        modules.join(" ")
    )
}

/// For WirePlumber: there are no devices, and no session bus to ask for them.
const WITHOUT_DEVICES: [(&str, &str); 2] = [
    (
        "main.lua.d",
        "alsa_monitor.enabled = false\nv4l2_monitor.enabled = false\n\
         libcamera_monitor.enabled = false\n\
         default_access.properties[\"enable-flatpak-portal\"] = false\n",
    ),
    ("bluetooth.lua.d", "bluez_monitor.enabled = false\n"),
];

/// Its parts are those of a desktop: the daemon, WirePlumber to connect what plays, and pw-cat. The
/// profiler tells of each period.
pub(super) fn pipewire(frames: u32, fifo: bool) -> Result<Vec<Started>> {
    let directory = Path::new(DIRECTORY);
    let _ = fs::remove_file(profile());
    let file = directory.join("pipewire.conf");
    fs::write(&file, configuration(frames))?;
    let daemon = Started::new("pipewire", fifo, |command| {
        command.arg("-c").arg(file);
    })?;
    let socket = directory.join("pipewire-0");
    wait_until("pipewire is not there", || Ok(socket.exists()))?;
    for (name, text) in WITHOUT_DEVICES {
        let place = directory.join("wireplumber").join(name);
        fs::create_dir_all(&place)?;
        fs::write(place.join("80-without-devices.lua"), text)?;
    }
    let session = Started::new("wireplumber", false, |command| {
        command
            .env("XDG_CONFIG_HOME", DIRECTORY)
            .env("HOME", DIRECTORY);
    })?;
    let sound = silence(&directory.join("silence.wav"), 600)?;
    let client = Started::new("pw-cat", fifo, |command| {
        command
            .args(["-p", "--latency", &frames.to_string()])
            .arg(sound)
            // Its own asks for real-time priority, which it may have as root.
            .env("PIPEWIRE_CONFIG_NAME", "client.conf");
    })?;
    wait_until("nothing is played", || {
        let links = answer("pw-link", &["-l"])?;
        Ok(links.is_some_and(|links| links.contains("pw-cat:output_FL")))
    })?;
    let profiler = Started::new("pw-profiler", false, |command| {
        command.arg("-o").arg(profile());
    })?;
    wait_until("nothing is told of periods", || {
        Ok(fs::metadata(profile()).is_ok_and(|file| file.len() > 0))
    })?;
    Ok(vec![client, daemon, session, profiler])
}

fn profile() -> PathBuf {
    Path::new(DIRECTORY).join("profile")
}

/// A file of so many seconds: it takes no memory, for nothing but its head is written.
fn silence(file: &Path, seconds: u32) -> Result<PathBuf> {
    const FRAMES: u32 = 48_000;
    const BYTES: u32 = 4;
    let length = seconds * FRAMES * BYTES;
    let mut head = Vec::new();
    head.extend_from_slice(b"RIFF");
    head.extend_from_slice(&(length + 36).to_le_bytes());
    head.extend_from_slice(b"WAVEfmt ");
    for word in [16, 2 << 16 | 1, FRAMES, FRAMES * BYTES, 16 << 16 | BYTES] {
        head.extend_from_slice(&word.to_le_bytes());
    }
    head.extend_from_slice(b"data");
    head.extend_from_slice(&length.to_le_bytes());
    fs::write(file, &head)?;
    let whole = u64::from(length) + head.len() as u64;
    File::options().write(true).open(file)?.set_len(whole)?;
    Ok(file.to_owned())
}

pub(super) fn late_in_pipewire() -> Result<Vec<u64>> {
    Ok(late_in_profile(&fs::read_to_string(profile())?))
}

/// How long each period took that was not played in time, ns. Of each line of the profile, in us:
/// from a period to the next (1), how long it should be (4), from its beginning until the client
/// was done (8), and whether it was (11: 3). The last line may not be complete.
fn late_in_profile(text: &str) -> Vec<u64> {
    let late = |line: &str| {
        let words = line.split('\t').map(|word| word.trim().parse::<i64>());
        let words: Vec<_> = words.map_while(Result::ok).collect();
        let [took, _, _, period, _, _, _, end, _, _, status, ..] = words[..] else {
            return None;
        };
        let us = took.max(end);
        (us > 2 * period || end > period || status != 3).then_some(us.max(period))
    };
    let (complete, _) = text.rsplit_once('\n').unwrap_or_default();
    let late = complete.lines().filter_map(late);
    late.map(|us| us.unsigned_abs() * 1000).collect()
}

/// How late each period was that came too late, ns: "Process XRun = 4 usec".
pub(super) fn late_in_jack(text: &str) -> Vec<u64> {
    let late = |line: &str| {
        let (us, _) = line.split_once("XRun = ")?.1.split_once("usec")?;
        us.trim().parse::<u64>().ok()
    };
    text.lines().filter_map(late).map(|us| us * 1000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_that_jack_or_pipewire_had_too_late_are_understood() {
        let jack = "JackTimedDriver::Process XRun = 4 usec\nJack: JackRequest::Notification\n";
        assert_eq!(late_in_jack(jack), [4_000]);
        let line = |took: u32, end: u32, status: u32| {
            format!("{took}\t37\t0\t1333\t35\t0\t19\t{end}\t0\t10\t{status}\t0\t \t \n")
        };
        let lines = [
            line(1325, 29, 3),
            line(2000, 1900, 3),
            line(3000, 30, 3),
            line(1333, 0, 1),
        ];
        assert_eq!(
            late_in_profile(&lines.concat()),
            [2_000_000, 3_000_000, 1_333_000]
        );
        assert_eq!(
            late_in_profile(line(5000, 30, 3).trim_end()),
            Vec::<u64>::new()
        );
        assert_eq!((late_in_jack(""), late_in_profile("")), (vec![], vec![]));
    }
}
