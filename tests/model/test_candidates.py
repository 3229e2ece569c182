"""Priorities are those of RFC 8445."""

from ipaddress import ip_address

from overlayd.model.candidates import Candidate, host_candidates, priority


def test_the_priority_of_a_host_candidate_as_others_compute_it():
    assert priority(126, 65535) == 2130706431  # what every ICE implementation gives to its first host candidate
    assert priority(0, 0, 256) == 0


def test_earlier_addresses_are_preferred():
    six, four = ip_address("2001:db8::1"), ip_address("192.0.2.1")
    assert host_candidates([six, four], 51820) == [
        Candidate("host", six, 51820, 2130706431),
        Candidate("host", four, 51820, 2130706175),
    ]
