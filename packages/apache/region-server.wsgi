# SPDX-License-Identifier: Apache-2.0
"""The region server for mod_wsgi, with /etc/regionService/regionInfo.cfg."""

from factory.region.wsgi import for_mod_wsgi

application = for_mod_wsgi()
