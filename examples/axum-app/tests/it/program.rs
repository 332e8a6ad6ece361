//! The app as its users meet it: a program, a client, a signal.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use testkit::Program;

fn app() -> (Program, String) {
    let app = Program::start(env!("CARGO_BIN_EXE_axum-app"), &["127.0.0.1:0"]);
    let address = app.told("axum-app listening on http://");
    (app, address)
}

// === a client ===

/// A kept connection, as `curl` has one.
struct Client(BufReader<TcpStream>);

#[derive(Debug)]
struct Answer {
    status: u16,
    fields: HashMap<String, String>,
    text: String,
}

impl Client {
    fn connect(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Program::PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, method: &str, path: &str) -> io::Result<Answer> {
        let length = if method == "POST" {
            "content-length: 0\r\n"
        } else {
            ""
        };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{length}\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let status = self
            .line()?
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status = status.ok_or(io::ErrorKind::InvalidData)?;
        let mut fields = HashMap::new();
        while let Some((name, value)) = self.line()?.split_once(": ") {
            fields.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let mut text = vec![0; fields["content-length"].parse().map_err(io::Error::other)?];
        self.0.read_exact(&mut text)?;
        let text = String::from_utf8(text).map_err(io::Error::other)?;
        Ok(Answer {
            status,
            fields,
            text,
        })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

fn get(address: &str, path: &str) -> Answer {
    Client::connect(address).unwrap().ask("GET", path).unwrap()
}

// === tests ===

#[test]
fn the_app_works_as_before() {
    let (_app, address) = app();
    assert_eq!(get(&address, "/seats").text, r#"{"free":100,"sold":0}"#);
    let mut client = Client::connect(&address).unwrap();
    assert_eq!(
        client.ask("POST", "/seats/7").unwrap().text,
        "seat 7 is yours\n"
    );
    assert_eq!(client.ask("POST", "/seats/7").unwrap().status, 409);
    assert_eq!(client.ask("POST", "/seats/100").unwrap().status, 404);
    assert_eq!(get(&address, "/price/7").text, r#"{"price":17}"#);
    assert_eq!(get(&address, "/ready").status, 200);
}

#[test]
fn prices_that_fail_open_their_circuit_and_nothing_else() {
    let (_app, address) = app();
    for _ in 0..5 {
        assert_eq!(get(&address, "/price/7?fail").status, 502);
    }
    let refused = get(&address, "/price/7");
    assert_eq!(refused.status, 503);
    let after: u64 = refused.fields["retry-after"].parse().unwrap();
    assert!(
        (1..=12).contains(&after),
        "ten seconds, with some chance in it: {after}"
    );
    assert_eq!(
        get(&address, "/seats").status,
        200,
        "a route that needs no prices"
    );
    let circuit = get(&address, "/circuit").text;
    assert!(
        circuit.contains(r#""state":"open""#) && circuit.contains(r#""failed":5"#),
        "{circuit}"
    );
}

#[test]
fn a_client_that_exceeds_its_limit_gets_retry_after() {
    let (_app, address) = app();
    let mut client = Client::connect(&address).unwrap();
    let answers: Vec<_> = (0..200)
        .map(|_| client.ask("GET", "/seats").unwrap())
        .collect();
    let refused: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status != 200)
        .collect();
    assert!(
        answers[..50].iter().all(|answer| answer.status == 200),
        "the burst"
    );
    assert!(
        !refused.is_empty(),
        "200 requests took longer than three seconds"
    );
    for answer in refused {
        assert_eq!(
            (answer.status, answer.fields["retry-after"].as_str()),
            (429, "1")
        );
    }
    assert_eq!(
        client.ask("GET", "/ready").unwrap().status,
        200,
        "who looks after it is not limited"
    );
    thread::sleep(Duration::from_secs(1));
    assert_eq!(client.ask("GET", "/seats").unwrap().status, 200, "as told");
}

/// Each buyer takes a tenth of a second, so at any moment all of them are in the middle of a purchase.
#[test]
fn a_deploy_in_the_middle_of_purchases_fails_none_of_them() {
    let (app, address) = app();
    let told = Arc::new(AtomicBool::new(false));
    let buyers: Vec<_> = (0..8)
        .map(|buyer| {
            let (address, told) = (address.clone(), told.clone());
            thread::spawn(move || {
                let (mut client, mut closed) = (Client::connect(&address).unwrap(), 0);
                for seat in (buyer..96).step_by(8) {
                    let late = told.load(SeqCst);
                    let answer = client
                        .ask("POST", &format!("/seats/{seat}"))
                        .expect("every purchase is answered");
                    assert_eq!(
                        (answer.status, answer.text),
                        (200, format!("seat {seat} is yours\n"))
                    );
                    match answer.fields.get("connection").map(String::as_str) {
                        Some("close") => {
                            closed += 1;
                            client = Client::connect(&address)
                                .expect("newcomers are served while it announces");
                        }
                        _ => assert!(
                            !late,
                            "an answer from after the signal says that the connection closes"
                        ),
                    }
                }
                closed
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(400));
    app.signal("TERM");
    while get(&address, "/ready").status == 200 {
        thread::sleep(Duration::from_millis(5));
    }
    told.store(true, SeqCst);
    let closed: usize = buyers.into_iter().map(|buyer| buyer.join().unwrap()).sum();
    assert!(closed > 8, "each was told to close and came back: {closed}");
    assert_eq!(get(&address, "/seats").text, r#"{"free":4,"sold":96}"#);
    let (code, lines) = app.ended();
    assert_eq!(code, Some(0), "{lines:?}");
    let report = lines
        .iter()
        .find_map(|line| line.strip_prefix("ended: "))
        .expect("a report");
    assert!(report.contains(" 0 forced, 0 leaked"), "{report}");
}

#[test]
fn an_address_in_use_is_reported() {
    let (_app, address) = app();
    let second = Program::start(env!("CARGO_BIN_EXE_axum-app"), &[&address]);
    let (code, _) = second.ended();
    assert_eq!(code, Some(1));
}
