//! What a wrong configuration gets.

use tokio::process::Command;

use crate::common::{PATIENCE, TempFile, command};

async fn refused(config: &str) -> (Option<i32>, String) {
    let file = TempFile::new(config);
    let path = file.0.to_str().unwrap();
    let output = command(&["--config", path])
        .stderr(std::process::Stdio::piped())
        .output()
        .await
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), told.replace(path, "FILE"))
}

#[tokio::test]
async fn a_wrong_file_is_reported_with_its_line_a_remedy_and_exit_code_2() {
    let (code, told) =
        refused("listen = '127.0.0.1:0'\n[[backend]]\nname = 'a'\naddress = 'localhost'\n").await;
    assert_eq!(code, Some(2));
    assert!(
        told.contains("FILE:4:11: `address` is no address"),
        "{told}"
    );
    assert!(told.contains("write an IP address and a port"), "{told}");
}

#[tokio::test]
async fn a_missing_file_is_reported_by_name_and_exit_code_2() {
    let output = command(&["--config", "no-such-file.toml"])
        .stderr(std::process::Stdio::piped())
        .output();
    let output = output.await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-file.toml: cannot be read"));
}

#[tokio::test]
async fn an_address_in_use_is_reported_with_a_remedy_and_exit_code_1() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let config =
        format!("listen = '{address}'\n[[backend]]\nname = 'a'\naddress = '127.0.0.1:1'\n");
    let (code, told) = refused(&config).await;
    assert_eq!(code, Some(1));
    assert!(
        told.contains(&format!("cannot listen on {address}")),
        "{told}"
    );
}

/// As in `gateway | head -1`.
#[tokio::test]
async fn a_closed_output_does_not_end_it() {
    let mut gateway = command(&[]).kill_on_drop(true).spawn().unwrap();
    drop(gateway.stdout.take());
    let pid = gateway.id().unwrap().to_string();
    let started = async {
        // It has a signal handler once it is about to print.
        while !handles_sigterm(&pid) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, started).await.unwrap();
    let signal = async |name: &str| {
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .await
                .unwrap()
                .success()
        )
    };
    signal("-TERM").await;
    let ended = tokio::time::timeout(PATIENCE, gateway.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.code(), Some(0), "{ended}");
}

fn handles_sigterm(pid: &str) -> bool {
    const SIGTERM: u64 = 1 << 14;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .unwrap()
        .trim();
    u64::from_str_radix(caught, 16).unwrap() & SIGTERM != 0
}
