use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::{Carried, Conditions, Link, Way};

const DELAY: Duration = Duration::from_millis(10);
const BOUND: Duration = Duration::from_secs(5);

fn udp_pair(link: &Link) -> (UdpSocket, UdpSocket) {
    let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let to = far.local_addr().unwrap();
    near.connect(link.udp(Way::There, to).unwrap().address)
        .unwrap();
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(BOUND)).unwrap();
    }
    (near, far)
}

#[test]
fn a_datagram_and_its_answer_take_two_delays_and_are_counted() {
    let link = Link::new(Conditions::fixed(DELAY));
    let (near, far) = udp_pair(&link);
    let mut buffer = [0; 100];
    let begun = Instant::now();
    near.send(b"how far?").unwrap();
    let (bytes, from) = far.recv_from(&mut buffer).unwrap();
    let one_way = begun.elapsed();
    far.send_to(&buffer[..bytes], from).unwrap();
    far.send_to(b"so far", from).unwrap();
    let bytes = near.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..bytes], b"how far?", "in order");
    near.recv(&mut buffer).unwrap();
    assert!(one_way >= DELAY && begun.elapsed() >= 2 * DELAY);
    let carried = Carried { there: 8, back: 14 };
    assert_eq!(link.carried(), carried);
}

#[test]
fn a_cut_link_loses_datagrams_until_it_is_healed() {
    let link = Link::new(Conditions::fixed(Duration::ZERO));
    let (near, far) = udp_pair(&link);
    let mut buffer = [0; 100];
    link.cut();
    near.send(b"lost").unwrap();
    let deadline = Instant::now() + BOUND;
    while link.dropped() == 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    link.heal();
    near.send(b"found").unwrap();
    let bytes = far.recv(&mut buffer).unwrap();
    assert_eq!((&buffer[..bytes], link.dropped()), (&b"found"[..], 1));
}

#[test]
fn datagrams_beyond_the_rate_and_the_queue_are_dropped() {
    let slow = Conditions::fixed(Duration::ZERO).limited(1_000_000);
    let link = Link::new(slow);
    let (near, far) = udp_pair(&link);
    let sent = 1500;
    for _ in 0..sent {
        near.send(&[0; 1000]).unwrap();
    }
    // It was sent at once; the queue holds half a second's worth.
    far.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let arrived = std::iter::from_fn(|| far.recv(&mut [0; 1000]).ok()).count();
    assert!((500..=1000).contains(&arrived), "{arrived}");
    assert_eq!(link.dropped() as usize, sent - arrived);
}

#[test]
fn a_stream_is_whole_late_and_no_faster_than_the_link() {
    let conditions = Conditions::fixed(DELAY).limited(4_000_000);
    let link = Link::new(conditions);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = link.tcp(Way::Back, listener.local_addr().unwrap()).unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let begun = Instant::now();
    let sender = thread::spawn(move || {
        let mut near = TcpStream::connect(at.address).unwrap();
        near.write_all(&sent).unwrap();
        near.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).unwrap();
        answer
    });
    let (mut far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(BOUND)).unwrap();
    thread::sleep(Duration::from_millis(50));
    link.cut();
    thread::sleep(Duration::from_millis(100));
    link.heal();
    let mut received = Vec::new();
    far.read_to_end(&mut received).unwrap();
    let took = begun.elapsed();
    far.write_all(b"thanks").unwrap();
    drop(far);
    assert_eq!(sender.join().unwrap(), b"thanks");
    assert!(received == expected, "not the bytes that were sent");
    assert!(took >= Duration::from_millis(250), "{took:?}");
    let carried = Carried {
        there: 6,
        back: 1_000_000,
    };
    assert_eq!(link.carried(), carried);
}

#[test]
fn a_random_delay_stays_within_its_bounds() {
    let bounds = Duration::from_millis(5)..=Duration::from_millis(25);
    let link = Link::new(Conditions {
        delay: bounds.clone(),
        bytes_per_second: None,
    });
    let (near, far) = udp_pair(&link);
    let mut seen = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        near.send(b"x").unwrap();
        far.recv(&mut [0; 10]).unwrap();
        seen.push(begun.elapsed());
    }
    let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
    assert!(least >= bounds.start());
    assert!(*most - *least >= Duration::from_millis(5), "{seen:?}");
}
