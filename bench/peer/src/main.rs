//! What overlayd's server is measured beside: the same wire, typed by serde, a thread for each connection and four
//! system calls a request (read the length, read the body, write the length, write the body).
//!
//! Usage: peer SOCKET PUBLIC_KEY

use serde::{Deserialize, Serialize};
use std::io::{Read, Result, Write};
use std::os::unix::net::{UnixListener, UnixStream};

#[derive(Deserialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
enum ClientFrame {
    Request { id: u64, request: Request },
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Request {
    Status,
    Shutdown,
}

#[derive(Serialize)]
#[serde(tag = "frame", rename_all = "snake_case")]
enum ServerFrame<'a> {
    Response { id: u64, response: Response<'a> },
}

#[derive(Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
enum Response<'a> {
    Ok,
    Status { public_key: &'a str, peer_count: u32, service_count: u32 },
}

fn serve(mut stream: UnixStream, public_key: &str) -> Result<()> {
    loop {
        let mut header = [0; 4];
        stream.read_exact(&mut header)?;
        let mut body = vec![0; u32::from_le_bytes(header) as usize];
        stream.read_exact(&mut body)?;
        let ClientFrame::Request { id, request } = serde_json::from_slice(&body)?;
        let response = match request {
            Request::Status => Response::Status { public_key, peer_count: 0, service_count: 0 },
            Request::Shutdown => Response::Ok,
        };
        let answer = serde_json::to_vec(&ServerFrame::Response { id, response })?;
        stream.write_all(&(answer.len() as u32).to_le_bytes())?;
        stream.write_all(&answer)?;
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (path, public_key) = (arguments.next().unwrap(), arguments.next().unwrap());
    for stream in UnixListener::bind(path)?.incoming() {
        let (stream, public_key) = (stream?, public_key.clone());
        std::thread::spawn(move || serve(stream, &public_key));
    }
    Ok(())
}
